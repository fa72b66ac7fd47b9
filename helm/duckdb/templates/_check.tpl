{{/* What a schema can't say: rules between values. `helm lint` does not stop at these. */}}

{{- define "duckdb.check" -}}
{{- $v := .Values -}}
{{- $fullname := include "duckdb.fullname" . -}}
{{- if not $v.auth.existingSecret -}}
{{- fail (printf "auth.existingSecret is missing; make one: kubectl create secret generic duckdb-auth -n %s --from-literal=admin-token=$(openssl rand -hex 32)" .Release.Namespace) -}}
{{- end -}}
{{- if and (not $v.tls.existingSecret) (not $v.insecure) -}}
{{- fail "name a certificate in tls.existingSecret, or set insecure if something else encrypts, such as a service mesh" -}}
{{- end -}}
{{- if and $v.tls.existingSecret $v.insecure -}}
{{- fail "tls.existingSecret and insecure exclude each other" -}}
{{- end -}}
{{- if not (hasKey $v.pools $v.defaultPool) -}}
{{- fail (printf "defaultPool: there is no pool %s" $v.defaultPool) -}}
{{- end -}}
{{- if and (eq $v.persistence.type "objectStorage") (eq (toString (default "none" $v.settings.publish)) "none") -}}
{{- fail "persistence.type objectStorage keeps the plain file of a mart: name it in settings.publish, or use none or claim" -}}
{{- end -}}
{{- $nodes := 0 -}}
{{- $seen := dict -}}
{{- range $name, $pool := $v.pools -}}
{{- $nodes = add $nodes (int $pool.replicas) -}}
{{- if not (hasKey $v.profiles $pool.profile) -}}
{{- fail (printf "pools.%s: there is no profile %s" $name $pool.profile) -}}
{{- end -}}
{{- range $tenant := $pool.tenants -}}
{{- if hasKey $seen $tenant -}}
{{- fail (printf "tenant %s is in the pools %s and %s" $tenant (get $seen $tenant) $name) -}}
{{- end -}}
{{- $_ := set $seen $tenant $name -}}
{{- $service := printf "%s-tenant-%s" $fullname $tenant -}}
{{- if gt (len $service) 63 -}}
{{- fail (printf "the Service %s would have a name of over 63 characters; shorten fullnameOverride" $service) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt $nodes 1 -}}
{{- if eq $v.store.type "volume" -}}
{{- fail (printf "store.type volume is for one node, and the pools have %d" $nodes) -}}
{{- end -}}
{{- if eq $v.takeoverAfter "never" -}}
{{- fail (printf "takeoverAfter never is for one node, and the pools have %d" $nodes) -}}
{{- end -}}
{{- end -}}
{{- end -}}
