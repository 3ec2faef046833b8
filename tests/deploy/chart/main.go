// Renders the chart's templates as helm does, with Go's own text/template and those few functions
// that the chart uses. Reads {"templates": {name: text}, "files": {name: text}, "data": {…}} and
// writes {name: rendered}. A value that is not there is an error, which helm would let pass.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type files map[string]string

func (f files) Get(name string) (string, error) {
	text, found := f[name]
	if !found {
		return "", errors.New("no file " + name)
	}
	return text, nil
}

func main() {
	var given struct {
		Templates map[string]string
		Files     files
		Data      map[string]any
	}
	decoder := json.NewDecoder(os.Stdin)
	decoder.UseNumber()
	check(decoder.Decode(&given))
	given.Data["Files"] = given.Files
	all := template.New("chart").Option("missingkey=error")
	all.Funcs(template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var text bytes.Buffer
			err := all.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
		"nindent": func(width int, text string) string {
			pad := "\n" + strings.Repeat(" ", width)
			return pad + strings.ReplaceAll(text, "\n", pad)
		},
		"quote":    func(text string) string { return strconv.Quote(text) },
		"toString": func(value any) string { return fmt.Sprint(value) },
		"trunc": func(most int, text string) string {
			if len(text) > most {
				return text[:most]
			}
			return text
		},
		"trimSuffix": func(end, text string) string { return strings.TrimSuffix(text, end) },
		"sha256sum":  func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) },
		"toJson": func(value any) (string, error) {
			text, err := json.Marshal(value)
			return string(text), err
		},
		"required": func(message string, value any) (any, error) {
			if value == nil || value == "" {
				return nil, errors.New(message)
			}
			return value, nil
		},
	})
	for name, text := range given.Templates {
		_, err := all.New(name).Parse(text)
		check(err)
	}
	rendered := map[string]string{}
	for name := range given.Templates {
		if strings.HasSuffix(name, ".yaml") {
			var text bytes.Buffer
			check(all.ExecuteTemplate(&text, name, given.Data))
			rendered[name] = text.String()
		}
	}
	check(json.NewEncoder(os.Stdout).Encode(rendered))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
