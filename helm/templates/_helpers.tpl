{{- define "harbor.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "harbor.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "harbor.labels" -}}
{{ include "harbor.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "harbor.image" -}}
{{- with .Values.image }}{{ if .registry }}{{ .registry }}/{{ end }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "harbor.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "harbor.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}

{{/* Where Ray's head listens. */}}
{{- define "harbor.address" -}}
{{- if eq .Values.mode "external" -}}{{ required "external.address: needed in mode external, HOST:PORT of Ray's head" .Values.external.address }}
{{- else if eq .Values.mode "kuberay" -}}{{ include "harbor.name" . }}-head-svc:6380
{{- else -}}{{ include "harbor.name" . }}-head:6380
{{- end -}}
{{- end -}}

{{/* Under which name Ray keeps its state in a Redis that others may use too. */}}
{{- define "harbor.redisNamespace" -}}
{{ .Release.Namespace }}-{{ include "harbor.name" . }}
{{- end -}}

{{/* Between which numbers of pods Ray's autoscaler keeps gateways (mode kuberay), and with how many it begins, as YAML. */}}
{{- define "harbor.gatewayPods" -}}
{{- $of := .Values.gateways -}}
{{- with $of.autoscaling -}}
{{- if not .enabled -}}
{{- $scales := $.Values.autoscaling.enabled -}}
{min: {{ ternary $of.minReplicas $of.replicas $scales }}, max: {{ ternary $of.maxReplicas $of.replicas $scales }}, first: {{ $of.replicas }}}
{{- else if or (ne $.Values.mode "kuberay") (not $.Values.autoscaling.enabled) -}}
{{- fail "gateways.autoscaling.enabled: needs mode kuberay and autoscaling.enabled; in mode static there is autoscaling.targetSessions" -}}
{{- else if or (lt (int .min) 1) (lt (int .max) (int .min)) -}}
{{- fail (printf "gateways.autoscaling: min has to be 1 or more, max %d or more" (max 1 (int .min))) -}}
{{- else if lt (int .sessions) 1 -}}
{{- fail "gateways.autoscaling.sessions: has to be 1 or more" -}}
{{- else -}}
{min: {{ .min }}, max: {{ .max }}, first: {{ min (max (int $of.replicas) (int .min)) (int .max) }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* `gateway.auth` of harbor.yaml. */}}
{{- define "harbor.auth" -}}
{{- $auth := dict "mode" .Values.auth.mode -}}
{{- if eq .Values.auth.mode "api_keys" -}}
{{- $_ := set $auth "keys_file" "/etc/harbor/keys/keys" -}}
{{- else -}}
{{- with .Values.auth.jwt -}}
{{- if not .algorithms -}}{{- fail "auth.jwt.algorithms: needed in mode jwt, such as [RS256]" -}}{{- end -}}
{{- if ne 1 (len (compact (list .jwksUrl .publicKey .secret))) -}}{{- fail "auth.jwt: one of jwksUrl, publicKey and secret is needed in mode jwt" -}}{{- end -}}
{{- range $ours, $theirs := dict "algorithms" "algorithms" "jwksUrl" "jwks_url" "publicKey" "public_key" "secret" "secret" "audience" "audience" "issuer" "issuer" "claim" "claim" -}}
{{- with index $.Values.auth.jwt $ours -}}{{- $_ := set $auth $theirs . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.auth.revokedKey -}}
{{- $_ := set $auth "revoked_file" "/etc/harbor/keys/revoked" -}}
{{- end -}}
{{- toYaml $auth -}}
{{- end -}}

{{/* Whether processes that recognise clients need the secret. */}}
{{- define "harbor.needsKeys" -}}
{{- if or (eq .Values.auth.mode "api_keys") .Values.auth.revokedKey -}}yes{{- end -}}
{{- end -}}

{{/* harbor.yaml: what the user wrote, under what the chart decides. */}}
{{- define "harbor.config" -}}
{{- $set := dict "cluster" (dict "gateways" "auto")
  "gateway" (dict "host" "0.0.0.0" "port" 8700 "admin_host" "0.0.0.0" "admin_port" 8701 "auth" (include "harbor.auth" . | fromYaml))
  "storage" (dict "path" "/var/lib/harbor") -}}
{{- with .Values.gateways.autoscaling -}}
{{- if .enabled -}}
{{- $_ := set $set.cluster "gateways" (dict "min" (int .min) "max" (int .max) "sessions" (int .sessions) "cool_down" .coolDown) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.mode "static") .Values.workers.persistence.enabled -}}
{{- $nodes := list -}}
{{- range $n := until (int .Values.workers.replicas) -}}
{{- $nodes = append $nodes (printf "%s-worker-%d" (include "harbor.name" $) $n) -}}
{{- end -}}
{{- $_ := set $set.storage "nodes" $nodes -}}
{{- if not (dig "storage" "wait" "" .Values.config) -}}{{/* A store comes back with its pod: an image may have to be pulled, a volume to change hosts. */}}
{{- $_ := set $set.storage "wait" "5m" -}}
{{- end -}}
{{- end -}}
{{- $config := deepCopy .Values.config -}}
{{- range $stream := $config.streams -}}
{{- if hasKey $stream "true" -}}{{/* Helm reads values as YAML 1.1, for which `on` is true. */}}
{{- $_ := set $stream "on" (index $stream "true") -}}
{{- $_ := unset $stream "true" -}}
{{- end -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $config $set) -}}
{{- end -}}

{{/* What every process's environment says. */}}
{{- define "harbor.env" -}}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ required "ray.auth.existingSecret: needed, the secret with Ray's token" .Values.ray.auth.existingSecret | quote }}, key: {{ .Values.ray.auth.key | quote }}}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "0"}
{{- if .Values.ray.logToStderr }}
- {name: RAY_LOG_TO_STDERR, value: "1"}
{{- end }}
{{- if and .Values.ray.redis.address (eq .Values.mode "static") }}
- {name: RAY_gcs_rpc_server_reconnect_timeout_s, value: "600"}  # as the operator sets it; by itself a node gives up while a head is still being made anew
{{- end }}
- {name: RAY_TMPDIR, value: /tmp}
- {name: HARBOR_LOG_FORMAT, value: json}
- {name: HOME, value: /tmp}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "harbor.keys" -}}
- name: keys
  secret:
    secretName: {{ required "auth.existingSecret: needed, the secret with the API keys (harbor key new), and what was revoked" .Values.auth.existingSecret | quote }}
    items:
      {{- if eq .Values.auth.mode "api_keys" }}
      - {key: {{ .Values.auth.key | quote }}, path: keys}
      {{- end }}
      {{- with .Values.auth.revokedKey }}
      - {key: {{ . | quote }}, path: revoked}
      {{- end }}
{{- end -}}

{{/* A pod that is a Ray node.
root, component, of (its values), args (of ray start), and optionally: headless (mode kuberay), grace, gateway, head, data */}}
{{- define "harbor.node" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - {name: {{ . | quote }}}
{{- end }}
{{- end }}
{{- if not .keepsServiceAccount }}
serviceAccountName: {{ include "harbor.serviceAccount" .root }}
automountServiceAccountToken: false
{{- end }}
enableServiceLinks: false
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
terminationGracePeriodSeconds: {{ .of.terminationGracePeriodSeconds | default 30 }}
{{- with .of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey .of "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- if .of.topologySpreadConstraints }}
  {{- toYaml .of.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "harbor.selector" . | fromYaml | toJson }}}
  {{- end }}
{{- end }}
containers:
  - name: {{ .container | default "harbor" }}
    image: {{ include "harbor.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    securityContext: {{- toYaml .root.Values.securityContext | nindent 6 }}
    command: [harbor]
    args: {{- toYaml .args | nindent 6 }}
    env:
      {{- include "harbor.env" .root | nindent 6 }}
      - name: POD_NAME
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .envFrom }}
    envFrom: {{- toYaml . | nindent 6 }}
    {{- end }}
    ports: {{- toYaml .ports | nindent 6 }}
    {{- with .probes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    resources: {{- toYaml .of.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: shm, mountPath: /dev/shm}
      {{- if .data }}
      - {name: data, mountPath: /var/lib/harbor}
      {{- end }}
      {{- if .config }}
      - {name: config, mountPath: /etc/harbor/config, readOnly: true}
      {{- end }}
      {{- if and .keys (include "harbor.needsKeys" .root) }}
      - {name: keys, mountPath: /etc/harbor/keys, readOnly: true}
      {{- end }}
      {{- with .root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - {name: tmp, emptyDir: {}}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .of.shm }}}}
  {{- with .dataVolume }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .config }}
  - name: config
    configMap: {name: {{ include "harbor.name" .root }}-config}
  {{- end }}
  {{- if and .keys (include "harbor.needsKeys" .root) }}
  {{- include "harbor.keys" .root | nindent 2 }}
  {{- end }}
  {{- with .root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* `harbor node` and the arguments of `ray start`, by component. Objects are to fit into /dev/shm, else Ray keeps them on the disk. Ports keep clear of those that Ray and KubeRay take by themselves. */}}
{{- define "harbor.ports" -}}
{{- list "--node-manager-port=6381" "--object-manager-port=6382" "--runtime-env-agent-port=6383" "--dashboard-agent-listen-port=6384" "--dashboard-agent-grpc-port=6385" "--metrics-export-port=6386" "--object-store-memory=100000000" "--min-worker-port=20000" "--max-worker-port=20999" "--node-name=$(POD_NAME)" | toJson -}}
{{- end -}}

{{- define "harbor.pod" -}}
{{- $root := .root -}}
{{- $address := printf "--address=%s" (include "harbor.address" $root) -}}
{{- $ports := include "harbor.ports" $root | fromJsonArray -}}
{{- $node := dict "containerPort" 6381 "name" "node" -}}
{{- $alive := dict "tcpSocket" (dict "port" "node") -}}
{{- $slow := dict "tcpSocket" (dict "port" "node") "periodSeconds" 2 "failureThreshold" 150 -}}
{{- $more := dict -}}
{{- if eq .component "head" -}}
  {{- $gcs := dict "tcpSocket" (dict "port" "gcs-server") -}}
  {{- $more = dict "of" $root.Values.head "args" (concat (list "node" "--" "--head" "--port=6380" "--num-cpus=0" "--include-dashboard=false") $ports)
    "ports" (list (dict "containerPort" 6380 "name" "gcs-server") $node)
    "probes" (dict "startupProbe" (dict "tcpSocket" (dict "port" "gcs-server") "periodSeconds" 2 "failureThreshold" 60) "livenessProbe" $gcs "readinessProbe" $gcs) -}}
  {{- if and $root.Values.autoscaling.enabled (eq $root.Values.mode "kuberay") -}}
    {{/* The autoscaler is a container of its own beside this one. */}}
    {{- $_ := set $more "args" (append $more.args "--no-monitor") -}}
  {{- end -}}
  {{- if $root.Values.ray.redis.address -}}
    {{/* In mode kuberay the operator sets the address and the namespace, from gcsFaultToleranceOptions, and the password in a command that ours replaces. */}}
    {{- $env := list -}}
    {{- if eq $root.Values.mode "static" -}}
      {{- $env = list (dict "name" "RAY_REDIS_ADDRESS" "value" $root.Values.ray.redis.address) (dict "name" "RAY_external_storage_namespace" "value" (include "harbor.redisNamespace" $root)) -}}
    {{- end -}}
    {{- with $root.Values.ray.redis.existingSecret -}}
      {{- if eq $root.Values.mode "static" -}}
        {{- $env = append $env (dict "name" "REDIS_PASSWORD" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" $root.Values.ray.redis.key))) -}}
      {{- end -}}
      {{- $_ := set $more "args" (append $more.args "--redis-password=$(REDIS_PASSWORD)") -}}
    {{- end -}}
    {{- $_ := set $more "env" $env -}}
  {{- end -}}
{{- else if eq .component "worker" -}}
  {{- $args := concat (list "node" "--" $address (printf "--num-cpus=%v" $root.Values.workers.cpus)) $ports -}}
  {{- $more = dict "of" $root.Values.workers "args" (append $args "--resources={\"harbor_store:$(POD_NAME)\":1}")
    "ports" (list $node) "probes" (dict "startupProbe" $slow "livenessProbe" $alive "readinessProbe" $alive) "data" true -}}
{{- else -}}
  {{- $count := regexFind "^[0-9]+" $root.Values.gateways.drain | int -}}
  {{- $unit := regexFind "[a-z]+$" $root.Values.gateways.drain -}}
  {{- $seconds := ternary (mul $count 60) (ternary $count 1 (eq $unit "s")) (eq $unit "m") -}}
  {{- if lt (int $root.Values.gateways.terminationGracePeriodSeconds) (int (add $seconds 35)) -}}
    {{- fail (printf "gateways.terminationGracePeriodSeconds: with a drain of %s it has to be %d or more, else clients are cut off" $root.Values.gateways.drain (int (add $seconds 35))) -}}
  {{- end -}}
  {{- $args := concat (list "node" "--grace" $root.Values.gateways.drain "--" $address "--num-cpus=0") $ports -}}
  {{- $more = dict "of" $root.Values.gateways "args" (append $args "--resources={\"harbor_gateway\":1}") "keys" true
    "ports" (list (dict "containerPort" 8700 "name" "http") $node)
    "probes" (dict "startupProbe" $slow "livenessProbe" $alive
      "readinessProbe" (dict "httpGet" (dict "path" "/readyz" "port" "http") "periodSeconds" 5 "timeoutSeconds" 3 "failureThreshold" 2)
      "lifecycle" (dict "preStop" (dict "exec" (dict "command" (list "sleep" "5"))))) -}}
{{- end -}}
{{- include "harbor.node" (merge (dict "root" $root "component" .component) . $more) -}}
{{- end -}}

{{- define "harbor.claim" -}}
{{- with .Values.workers.persistence -}}
accessModes: {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end -}}
{{- end -}}
