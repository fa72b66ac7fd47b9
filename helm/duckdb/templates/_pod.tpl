{{/* The pod of a pool. Takes a dict of `root`, `name`, `pool` and `profile`. */}}

{{- define "duckdb.pod" -}}
{{- $v := .root.Values -}}
{{- $tls := $v.tls.existingSecret -}}
metadata:
  labels:
    {{- include "duckdb.nodeSelector" .root | nindent 4 }}
    tarn/pool: {{ .name | quote }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Settings are read at the start.
    checksum/settings: {{ include "duckdb.settings" .root | sha256sum }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "duckdb.serviceAccount" .root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $v.terminationGracePeriodSeconds }}
  {{- with $v.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  securityContext: {{- toYaml $v.podSecurityContext | nindent 4 }}
  containers:
    - name: node
      image: {{ include "duckdb.image" .root | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [tarn]
      args: [serve, --config, /etc/tarn/tarn.toml]
      env: {{- include "duckdb.env" . | nindent 8 }}
      {{- with $v.extraEnvFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: api
          containerPort: 8642
      {{- $probe := dict "path" "/healthz" "port" "api" "scheme" (ternary "HTTPS" "HTTP" (not (empty $tls))) }}
      startupProbe:
        httpGet: {{- toYaml $probe | nindent 10 }}
        {{- toYaml $v.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet: {{- toYaml $probe | nindent 10 }}
        {{- toYaml $v.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet: {{- toYaml (set (deepCopy $probe) "path" "/readyz") | nindent 10 }}
        {{- toYaml $v.probes.readiness | nindent 8 }}
      {{- if and (gt (int $v.preStopSleepSeconds) 0) (semverCompare ">=1.30-0" .root.Capabilities.KubeVersion.Version) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ int $v.preStopSleepSeconds }}
      {{- end }}
      {{- if .pool.resources }}
      resources: {{- toYaml .pool.resources | nindent 8 }}
      {{- else }}
      # The node sizes its engines by the limits of its pod.
      resources:
        requests: { cpu: {{ .profile.cpu | quote }}, memory: {{ .profile.memory }} }
        limits: { cpu: {{ .profile.cpu | quote }}, memory: {{ .profile.memory }} }
      {{- end }}
      securityContext: {{- toYaml $v.securityContext | nindent 8 }}
      volumeMounts:
        - { name: state, mountPath: /var/lib/tarn }
        {{- if eq $v.persistence.type "objectStorage" }}
        - { name: published, mountPath: /var/lib/tarn-published }
        {{- end }}
        - { name: tmp, mountPath: /tmp }
        - { name: settings, mountPath: /etc/tarn/tarn.toml, subPath: tarn.toml, readOnly: true }
        {{- if $tls }}
        # The whole secret and no single file of it, so that renewals arrive.
        - { name: tls, mountPath: /etc/tarn/tls, readOnly: true }
        {{- end }}
        {{- if include "duckdb.webIdentity" .root }}
        - { name: web-identity, mountPath: /var/run/secrets/tarn, readOnly: true }
        {{- end }}
        {{- if eq $v.store.type "volume" }}
        - { name: objects, mountPath: /var/lib/tarn-objects }
        {{- end }}
  volumes:
    # Sockets of engines.
    - name: tmp
      emptyDir: {}
    - name: settings
      configMap:
        name: {{ include "duckdb.fullname" .root }}
    {{- if ne $v.persistence.type "claim" }}
    - name: state
      emptyDir:
        sizeLimit: {{ .profile.disk }}
    {{- end }}
    {{- if $tls }}
    - name: tls
      secret:
        secretName: {{ $tls | quote }}
        defaultMode: 0440
    {{- end }}
    {{- if include "duckdb.webIdentity" .root }}
    - name: web-identity
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken:
              path: token
              audience: {{ $v.store.s3.webIdentity.audience | quote }}
              expirationSeconds: {{ int $v.store.s3.webIdentity.expirationSeconds }}
    {{- end }}
    {{- if eq $v.store.type "volume" }}
    - name: objects
      persistentVolumeClaim:
        claimName: {{ default (printf "%s-objects" (include "duckdb.fullname" .root)) $v.store.volume.existingClaim | quote }}
    {{- end }}
  {{- with default $v.nodeSelector .pool.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with default $v.tolerations .pool.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with default $v.affinity .pool.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $v.spreadOverHosts }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "duckdb.nodeSelector" .root | nindent 10 }}
          tarn/pool: {{ .name | quote }}
  {{- end }}
{{- end -}}
