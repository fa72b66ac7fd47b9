{{/* The environment of a node, by the names of docs/configuration.md. Takes a dict of `root` and `profile`. */}}

{{- define "duckdb.env" -}}
{{- $v := .root.Values -}}
{{- $s3 := $v.store.s3 -}}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: TARN_LISTEN
  value: 0.0.0.0:8642
- name: TARN_ADVERTISE
  value: $(POD_NAME).{{ include "duckdb.fullname" .root }}-nodes.$(POD_NAMESPACE).svc.{{ $v.clusterDomain }}:8642
- name: TARN_STATE_DIR
  value: /var/lib/tarn
{{- if eq $v.persistence.type "objectStorage" }}
- name: TARN_PUBLISH_DIR
  value: /var/lib/tarn-published
{{- end }}
- name: TMPDIR
  value: /tmp
{{- if $v.tls.existingSecret }}
- name: TARN_TLS_CERT
  value: /etc/tarn/tls/{{ $v.tls.certKey }}
- name: TARN_TLS_KEY
  value: /etc/tarn/tls/{{ $v.tls.keyKey }}
{{- with $v.tls.caKey }}
- name: TARN_CA_FILE
  value: /etc/tarn/tls/{{ . }}
{{- end }}
{{- else }}
- name: TARN_INSECURE
  value: "true"
{{- end }}
- name: TARN_ADMIN_TOKEN
  valueFrom: { secretKeyRef: { name: {{ $v.auth.existingSecret | quote }}, key: {{ $v.auth.adminTokenKey | quote }} } }
{{- with $v.auth.masterKeyKey }}
- name: TARN_MASTER_KEY
  valueFrom: { secretKeyRef: { name: {{ $v.auth.existingSecret | quote }}, key: {{ . | quote }} } }
{{- end }}
- name: TARN_TAKEOVER_AFTER
  value: {{ $v.takeoverAfter }}
- name: TARN_CONTROL
  value: {{ $v.store.controlBucket | quote }}
- name: TARN_BUCKET_ANALYTICS
  value: {{ $v.store.buckets.analytics | quote }}
- name: TARN_BUCKET_PROCESSED
  value: {{ $v.store.buckets.processed | quote }}
- name: TARN_BUCKET_RAW
  value: {{ $v.store.buckets.raw | quote }}
- name: TARN_ENGINE_THREADS
  value: {{ .profile.engineThreads | quote }}
- name: TARN_ENGINE_MEMORY
  value: {{ .profile.engineMemory | quote }}
- name: TARN_ENGINE_TEMP
  value: {{ .profile.engineTemp | quote }}
{{- if eq $v.store.type "volume" }}
- name: TARN_STORE
  value: file:/var/lib/tarn-objects/store
{{- else }}
- name: TARN_STORE
  value: s3
{{- with $s3.endpoint }}
- name: DUCKDB_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: DUCKDB_S3_REGION
  value: {{ $s3.region | quote }}
{{- with $s3.pathStyle }}
- name: TARN_S3_PATH_STYLE
  value: {{ . | quote }}
{{- end }}
{{- with $s3.credentials.existingSecret }}
- name: DUCKDB_ACCESS_KEY_ID
  valueFrom: { secretKeyRef: { name: {{ . | quote }}, key: {{ $s3.credentials.accessKeyIdKey | quote }} } }
- name: DUCKDB_SECRET_ACCESS_KEY
  valueFrom: { secretKeyRef: { name: {{ . | quote }}, key: {{ $s3.credentials.secretAccessKeyKey | quote }} } }
{{- if $s3.credentials.sessionTokenKey }}
- name: DUCKDB_SESSION_TOKEN
  valueFrom: { secretKeyRef: { name: {{ . | quote }}, key: {{ $s3.credentials.sessionTokenKey | quote }} } }
{{- end }}
{{- end }}
{{- with $s3.roleArn }}
- name: DUCKDB_S3_ROLE_ARN
  value: {{ . | quote }}
{{- end }}
{{- with $s3.stsEndpoint }}
- name: TARN_S3_STS_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if include "duckdb.webIdentity" .root }}
- name: TARN_S3_WEB_IDENTITY_TOKEN_FILE
  value: /var/run/secrets/tarn/token
{{- end }}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Not empty if the role is assumed with the service account's token. */}}
{{- define "duckdb.webIdentity" -}}
{{- if and (eq .Values.store.type "s3") .Values.store.s3.roleArn (not .Values.store.s3.credentials.existingSecret) -}}yes{{- end -}}
{{- end -}}
