"""What every party must agree on to the bit: contract, messages, tasks, release format."""
