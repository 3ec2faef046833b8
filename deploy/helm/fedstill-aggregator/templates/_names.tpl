{{- define "fedstill.name" -}}
{{ printf "%s-fedstill-aggregator" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end -}}

{{- define "fedstill.selector" -}}
app.kubernetes.io/name: fedstill-aggregator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "fedstill.labels" -}}
{{ include "fedstill.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- define "fedstill.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end -}}

{{- define "fedstill.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}
