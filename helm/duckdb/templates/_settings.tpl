{{/* tarn.toml of .Values.settings. The node takes any value as a text, so numbers keep their digits. */}}

{{- define "duckdb.settings" -}}
{{- range $key, $value := .Values.settings }}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
{{ $key }} = {{ $value | int64 | toString | toJson }}
{{- else }}
{{ $key }} = {{ $value | toString | toJson }}
{{- end }}
{{- end }}
{{- end -}}
