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
{{- $repository := required "image.repository is missing: build the Dockerfile, push the image, and name it here" .Values.image.repository -}}
{{- with .Values.image.digest -}}
{{ $repository }}@{{ . }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* What both containers have; the caller adds name, args, ports and probes. */}}
{{- define "kubemeter.container" -}}
image: {{ include "kubemeter.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- $keys := and .gateway .Values.auth.enabled .Values.auth.apiKeys.existingSecret }}
{{- if or .Values.clickhouse.existingSecret $keys }}
volumeMounts:
  {{- if .Values.clickhouse.existingSecret }}
  - {name: clickhouse, mountPath: /etc/kubemeter/clickhouse, readOnly: true}
  {{- end }}
  {{- if $keys }}
  - {name: api-keys, mountPath: /etc/kubemeter/api-keys, readOnly: true}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "kubemeter.authEnv" -}}
{{- if .Values.auth.enabled -}}
- {name: KUBEMETER_AUDIENCE, value: {{ .Values.auth.audience | quote }}}
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
  value: {{ required "clickhouse.url is missing: give the URL of ClickHouse's HTTP interface, such as http://clickhouse:8123" .Values.clickhouse.url | quote }}
- {name: KUBEMETER_CLICKHOUSE_DATABASE, value: {{ .Values.clickhouse.database | quote }}}
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
