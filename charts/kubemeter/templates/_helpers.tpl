{{- define "kubemeter.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kubemeter.fullname" -}}
{{- $name := include "kubemeter.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $full | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Of objects outside namespaces: two releases of one name must not share them. */}}
{{- define "kubemeter.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "kubemeter.fullname" .) -}}
{{- end -}}

{{- define "kubemeter.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "kubemeter.fullname" .) "default") -}}
{{- end -}}

{{/* What never changes while a release lives: selectors can't. */}}
{{- define "kubemeter.selector" -}}
app.kubernetes.io/name: {{ include "kubemeter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: metering
{{- end -}}

{{- define "kubemeter.labels" -}}
{{ include "kubemeter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "kubemeter.image" -}}
{{- include "kubemeter.imageName" (dict "image" .Values.image "of" "image" "chart" .Chart) -}}
{{- end -}}

{{/* `image` is the value that is called `of`. */}}
{{- define "kubemeter.imageName" -}}
{{- $repository := required (printf "%s.repository is missing: run `make image`, push the image, and name it here" .of) .image.repository -}}
{{- with .image.digest -}}
{{ $repository }}@{{ . }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The least that a pod needs: the restricted pod security standard, and more. */}}
{{- define "kubemeter.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kubemeter.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* Of what is not a pod of gateway and operator: their names end in what they are. */}}
{{- define "kubemeter.bundledName" -}}
{{- include "kubemeter.fullname" . | trunc 52 | trimSuffix "-" }}-clickhouse
{{- end -}}

{{- define "kubemeter.bundledSelector" -}}
app.kubernetes.io/name: {{ include "kubemeter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: clickhouse
{{- end -}}

{{- define "kubemeter.bundledLabels" -}}
{{- merge (include "kubemeter.bundledSelector" . | fromYaml) (include "kubemeter.labels" . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "kubemeter.testName" -}}
{{- include "kubemeter.fullname" . | trunc 58 | trimSuffix "-" }}-test
{{- end -}}

{{- define "kubemeter.testSelector" -}}
app.kubernetes.io/name: {{ include "kubemeter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "kubemeter.clickhouseUrl" -}}
{{- if .Values.clickhouse.bundled.enabled -}}
{{- if or .Values.clickhouse.url .Values.clickhouse.existingSecret -}}
{{- fail "clickhouse.bundled.enabled is a ClickHouse without password in the release: leave clickhouse.url and clickhouse.existingSecret empty, or the bundled one disabled" -}}
{{- end -}}
http://{{ include "kubemeter.bundledName" . }}.{{ .Release.Namespace }}:8123
{{- else -}}
{{- required "clickhouse.url is missing: give the URL of ClickHouse's HTTP interface, such as http://clickhouse:8123, or try Kubemeter out with clickhouse.bundled.enabled" .Values.clickhouse.url -}}
{{- end -}}
{{- end -}}

{{/* How the gateway is reached; also what its port is called. */}}
{{- define "kubemeter.scheme" -}}
{{- empty .Values.gateway.tls.secretName | ternary "http" "https" -}}
{{- end -}}

{{/* A certificate is for the Service's name as DNS has it everywhere. */}}
{{- define "kubemeter.gatewayHost" -}}
{{- include "kubemeter.fullname" . }}.{{ .Release.Namespace }}{{ if .Values.gateway.tls.secretName }}.svc{{ end -}}
{{- end -}}

{{- define "kubemeter.tlsEnv" -}}
- {name: KUBEMETER_TLS_CERT, value: /etc/kubemeter/tls/tls.crt}
- {name: KUBEMETER_TLS_KEY, value: /etc/kubemeter/tls/tls.key}
{{- end -}}

{{- define "kubemeter.tracesEnv" -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.traces.otlpEndpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: {{ .Values.traces.sampler | quote }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .Values.traces.samplerArgument | quote }}}
{{- end -}}

{{/* What both containers have; the caller adds name, args, ports and probes. */}}
{{- define "kubemeter.container" -}}
image: {{ include "kubemeter.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- include "kubemeter.containerSecurity" . | nindent 2 }}
{{- $keys := and .gateway .Values.auth.enabled .Values.auth.apiKeys.existingSecret }}
{{- $tls := and .gateway .Values.gateway.tls.secretName }}
{{- if or .Values.clickhouse.existingSecret $keys $tls }}
volumeMounts:
  {{- if .Values.clickhouse.existingSecret }}
  - {name: clickhouse, mountPath: /etc/kubemeter/clickhouse, readOnly: true}
  {{- end }}
  {{- if $keys }}
  - {name: api-keys, mountPath: /etc/kubemeter/api-keys, readOnly: true}
  {{- end }}
  {{- if $tls }}
  - {name: tls, mountPath: /etc/kubemeter/tls, readOnly: true}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "kubemeter.authEnv" -}}
{{- if .Values.auth.enabled -}}
- {name: KUBEMETER_AUDIENCE, value: {{ .Values.auth.audience | quote }}}
- {name: KUBEMETER_AUTH_STALE_SECONDS, value: {{ .Values.auth.staleSeconds | int | quote }}}
- {name: KUBEMETER_ROLE_PREFIX, value: {{ include "kubemeter.clusterName" . | quote }}}
{{- if .Values.auth.apiKeys.existingSecret }}
- {name: KUBEMETER_API_KEYS, value: /etc/kubemeter/api-keys/api-keys}
{{- end }}
{{- else -}}
- {name: KUBEMETER_INSECURE_NO_AUTH, value: "true"}
{{- end -}}
{{- end -}}

{{- define "kubemeter.env" -}}
- {name: KUBEMETER_LOG, value: {{ .Values.log.filter | quote }}}
- {name: KUBEMETER_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- name: KUBEMETER_CLICKHOUSE_URL
  value: {{ include "kubemeter.clickhouseUrl" . | quote }}
- {name: KUBEMETER_CLICKHOUSE_DATABASE, value: {{ .Values.clickhouse.database | quote }}}
{{- with .Values.clickhouse.cluster }}
{{- if .name }}
{{- if $.Values.clickhouse.bundled.enabled }}
{{- fail "clickhouse.cluster is for a ClickHouse outside: the bundled one is one server" }}
{{- end }}
{{- if not (or .nodes .shards) }}
{{- fail "clickhouse.cluster.name needs clickhouse.cluster.nodes (the HTTP interface of each shard's server) or clickhouse.cluster.shards (how many, for ever)" }}
{{- end }}
{{- if gt (int .replicas) 1 }}
{{- if or (not .nodes) (ne (mod (len .nodes) (int .replicas)) 0) }}
{{- fail "clickhouse.cluster.replicas needs clickhouse.cluster.nodes with every server: so many for each shard" }}
{{- end }}
- {name: KUBEMETER_CLICKHOUSE_REPLICAS, value: {{ .replicas | quote }}}
{{- end }}
- {name: KUBEMETER_CLICKHOUSE_CLUSTER, value: {{ .name | quote }}}
{{- with .nodes }}
- {name: KUBEMETER_CLICKHOUSE_NODES, value: {{ join "," . | quote }}}
{{- end }}
{{- with .shards }}
- {name: KUBEMETER_CLICKHOUSE_SHARDS, value: {{ . | quote }}}
{{- end }}
{{- else if or .nodes .shards }}
{{- fail "clickhouse.cluster.name is missing: say which cluster of the server's remote_servers" }}
{{- end }}
{{- end }}
{{- with .Values.clickhouse.existingSecret }}
- name: KUBEMETER_CLICKHOUSE_USER
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.clickhouse.userKey | quote }}}
- {name: KUBEMETER_CLICKHOUSE_PASSWORD_FILE, value: /etc/kubemeter/clickhouse/password}
{{- end }}
{{- with .Values.watchNamespace }}
- {name: KUBEMETER_WATCH_NAMESPACE, value: {{ . | quote }}}
{{- end }}
{{- end -}}
