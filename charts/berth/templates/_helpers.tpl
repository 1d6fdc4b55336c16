{{/* Names, labels and what several objects share. */}}

{{- define "berth.fullname" -}}
{{- default (ternary .Release.Name (printf "%s-berth" .Release.Name) (contains "berth" .Release.Name)) .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "berth.peers" -}}{{ include "berth.fullname" . }}-peers{{- end -}}
{{- define "berth.etcd" -}}{{ include "berth.fullname" . }}-etcd{{- end -}}
{{- define "berth.agent" -}}{{ include "berth.fullname" . }}-agent{{- end -}}
{{- define "berth.domain" -}}{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}{{- end -}}

{{/* Labels that choose pods; never changed, because selectors cannot be. Takes {root, part}. */}}
{{- define "berth.selector" -}}
app.kubernetes.io/name: berth
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "berth.labels" -}}
{{ include "berth.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* An image's full name. Takes {repository, tag, digest}. */}}
{{- define "berth.image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "berth.ownImage" -}}
{{- $image := .Values.image -}}
{{- include "berth.image" (dict "repository" $image.repository "tag" (default .Chart.AppVersion $image.tag) "digest" $image.digest) -}}
{{- end -}}

{{/* What every pod but the agent's obeys: the restricted level of Kubernetes' pod security standards. */}}
{{- define "berth.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "berth.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Keeps pods of a part apart. Takes {root, part, how}. */}}
{{- define "berth.affinity" -}}
podAntiAffinity:
{{- if eq .how "required" }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "berth.selector" . | nindent 10 }}
{{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "berth.selector" . | nindent 12 }}
{{- end }}
{{- end -}}

{{/* Over zones where there are some. Takes {root, part}. */}}
{{- define "berth.spread" -}}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "berth.selector" . | nindent 6 }}
{{- end -}}

{{- define "berth.scheme" -}}{{ ternary "http" "https" (eq .Values.tls.mode "insecure") }}{{- end -}}

{{- define "berth.tlsSecret" -}}
{{- if eq .Values.tls.mode "certManager" -}}{{ include "berth.fullname" . }}-tls{{- else -}}{{ .Values.tls.secretName }}{{- end -}}
{{- end -}}

{{- define "berth.etcdIsBundled" -}}
{{- if and (eq .Values.controller.store "etcd") (eq .Values.etcd.mode "bundled") -}}yes{{- end -}}
{{- end -}}

{{- define "berth.etcdScheme" -}}{{ ternary "http" "https" (eq .Values.etcd.bundled.tls.mode "insecure") }}{{- end -}}

{{- define "berth.etcdTlsSecret" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{ .Values.etcd.external.tlsSecretName }}
{{- else if eq .Values.etcd.bundled.tls.mode "certManager" -}}
{{ include "berth.etcd" . }}-tls
{{- else if eq .Values.etcd.bundled.tls.mode "secret" -}}
{{ .Values.etcd.bundled.tls.secretName }}
{{- end -}}
{{- end -}}

{{/* Where controllers find etcd, as JSON. */}}
{{- define "berth.etcdEndpoints" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{ .Values.etcd.external.endpoints | toJson }}
{{- else -}}
{{- $found := list -}}
{{- range $n := until (int .Values.etcd.bundled.members) -}}
{{- $found = append $found (printf "%s://%s-%d.%s.%s:2379" (include "berth.etcdScheme" $) (include "berth.etcd" $) $n (include "berth.etcd" $) (include "berth.domain" $)) -}}
{{- end -}}
{{ $found | toJson }}
{{- end -}}
{{- end -}}

{{/* The URL of a controller, with {pod} in the place of its name unless told otherwise. */}}
{{- define "berth.advertise" -}}
{{- default (printf "%s://{pod}.%s.%s:%d" (include "berth.scheme" .) (include "berth.peers" .) (include "berth.domain" .) (int .Values.controller.port)) .Values.controller.advertise -}}
{{- end -}}

{{/* The URLs of all controllers, as JSON. */}}
{{- define "berth.controllers" -}}
{{- $found := list -}}
{{- range $n := until (int .Values.controller.replicas) -}}
{{- $found = append $found (include "berth.advertise" $ | replace "{pod}" (printf "%s-%d" (include "berth.fullname" $) $n) | replace "{ordinal}" (toString $n)) -}}
{{- end -}}
{{ $found | toJson }}
{{- end -}}

{{/* A value as TOML writes it. YAML's whole numbers come as floats. */}}
{{- define "berth.toml" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}{{ int64 . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* Settings that stand in no table. */}}
{{- define "berth.tomlValues" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "map" $value) }}
{{ $name }} = {{ include "berth.toml" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Tables of settings. */}}
{{- define "berth.tomlTables" -}}
{{- range $name, $value := . }}
{{- if kindIs "map" $value }}

[{{ $name }}]
{{- range $key, $value := $value }}
{{ $key }} = {{ include "berth.toml" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The controllers' configuration; what differs between them comes by the environment. */}}
{{- define "berth.controllerToml" -}}
{{- $c := .Values.controller -}}
listen = {{ printf "%s:%d" .Values.listenAddress (int $c.port) | toJson }}
{{- if eq .Values.tls.mode "insecure" }}
insecure = true
{{- end }}
store = {{ $c.store | toJson }}
data_dir = "/var/lib/berth"
{{- include "berth.tomlValues" $c.settings }}
{{- if ne .Values.tls.mode "insecure" }}

[tls]
cert = "../tls/tls.crt"
key = "../tls/tls.key"
client_ca = "../tls/ca.crt"
{{- end }}
{{- if eq $c.store "etcd" }}

[etcd]
endpoints = {{ include "berth.etcdEndpoints" . }}
lease_ttl = {{ .Values.etcd.leaseTtl | toJson }}
{{- with .Values.etcd.prefix }}
prefix = {{ toJson . }}
{{- end }}
{{- if include "berth.etcdTlsSecret" . }}
ca = "../etcd-tls/ca.crt"
{{- if or (eq .Values.etcd.mode "bundled") .Values.etcd.external.clientCertificate }}
cert = "../etcd-tls/tls.crt"
key = "../etcd-tls/tls.key"
{{- end }}
{{- end }}
{{- if and (eq .Values.etcd.mode "external") .Values.etcd.external.user }}
user = {{ .Values.etcd.external.user | toJson }}
password_file = "../etcd-login/password"
{{- end }}
{{- end }}
{{- include "berth.telemetryToml" . }}
{{- include "berth.tomlTables" (mergeOverwrite (dict "log" (dict "format" "json")) (deepCopy $c.settings)) }}
{{- end -}}

{{/* The agents' configuration; the node's name comes by the environment. */}}
{{- define "berth.agentToml" -}}
controllers = {{ include "berth.controllers" . }}
driver = "vfio"
data_dir = "/var/lib/berth-agent"
{{- if eq .Values.tls.mode "insecure" }}
insecure = true
{{- else }}

[tls]
ca = "../tls/ca.crt"
cert = "../tls/tls.crt"
key = "../tls/tls.key"
{{- end }}
{{- include "berth.telemetryToml" . }}
{{- include "berth.tomlTables" (mergeOverwrite (dict "log" (dict "format" "json")) (deepCopy .Values.agent.settings)) }}
{{- end -}}

{{/* What is exported, of controllers and agents alike. */}}
{{- define "berth.telemetryToml" -}}
{{- with .Values.telemetry }}
{{- if .endpoint }}

[telemetry]
endpoint = {{ toJson .endpoint }}
{{- if .caSecretName }}
ca = "../telemetry/ca.crt"
{{- end }}
sample = {{ printf "%.4f" (float64 .sample) }}
traces_per_second = {{ int .tracesPerSecond }}
lines_per_second = {{ int .linesPerSecond }}
{{- end }}
{{- end }}
{{- end -}}
