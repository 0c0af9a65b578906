{{- define "sana.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sana.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sana.labels" -}}
{{ include "sana.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sana.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sana.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sana.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- /* The base of image URLs, as clients reach the service. */ -}}
{{- define "sana.publicUrl" -}}
{{- if .Values.publicUrl -}}
{{- .Values.publicUrl -}}
{{- else if .Values.ingress.enabled -}}
{{- printf "%s://%s" (ternary "https" "http" (ne .Values.ingress.tlsSecret "")) .Values.ingress.host -}}
{{- end -}}
{{- end -}}

{{- /* What one pod would keep from the others is refused before anything is made. */ -}}
{{- define "sana.check" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}
{{- if and $several (not (hasPrefix "s3://" .Values.storage.url)) -}}
{{- fail "storage.url: several replicas need s3://..., or an image is found on the replica that drew it alone" -}}
{{- end -}}
{{- if and $several (not .Values.jobs.url) (not .Values.jobs.existingSecret) -}}
{{- fail "jobs.url or jobs.existingSecret: several replicas need one Redis, or a job is found on the replica that took it alone" -}}
{{- end -}}
{{- if and .Values.jobs.url .Values.jobs.existingSecret -}}
{{- fail "jobs.url and jobs.existingSecret: give one of them" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.apiKeys.existingSecret (not .Values.serviceMonitor.keySecret) -}}
{{- fail "serviceMonitor.keySecret: /metrics wants an API key where apiKeys are configured" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (ne .Values.models.kind "hub") (contains "/" .Values.models.safety) -}}
{{- fail "models.safety: a repository is downloaded with models.kind=hub alone; take opennsfw or off" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.publicUrl) -}}
{{- fail "publicUrl: an HTTPRoute does not say whether its gateway speaks https, and image URLs must" -}}
{{- end -}}
{{- end -}}

{{- define "sana.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "sana.devices" -}}
{{- $devices := list "cpu" -}}
{{- if .Values.gpu.enabled -}}
{{- $devices = list -}}
{{- range until (int .Values.gpu.count) -}}
{{- $devices = append $devices (printf "cuda:%d" .) -}}
{{- end -}}
{{- end -}}
{{- join "," $devices -}}
{{- end -}}

{{- define "sana.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $gpus := dict .Values.gpu.resource .Values.gpu.count -}}
{{- $_ := set $resources "limits" (merge $gpus (default (dict) $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
