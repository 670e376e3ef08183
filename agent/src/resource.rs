//! Who is speaking: attributes of the service, its process, host, container and pod, by OpenTelemetry's conventions for resources.

use crate::agent::Agent;
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;

/// What a file of the system says, without the line's end.
fn file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The id of the container that this runs in: 64 hexadecimal digits in the paths of control groups or mounts.
fn container_id(text: &str) -> Option<&str> {
    text.lines()
        .flat_map(|line| line.split(['/', ':', '-', '.', ' ']))
        .find(|part| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Random enough to tell processes apart, and the same for as long as this one lives.
fn instance_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    format!("{:08x}-{now:016x}", std::process::id())
}

/// What is found out; later ones go over earlier ones.
fn found(agent: &Agent) -> Vec<KeyValue> {
    let mut all: Vec<KeyValue> = Vec::new();
    let mut put = |key: &'static str, value: Option<Value>| all.extend(value.map(|value| KeyValue::new(key, value)));
    put("process.pid", Some(i64::from(std::process::id()).into()));
    let executable = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    put("process.executable.name", executable.map(Value::from));
    put("process.runtime.name", Some("rust".into()));
    put("host.name", file("/proc/sys/kernel/hostname").or_else(|| variable("HOSTNAME")).map(Value::from));
    put(
        "host.arch",
        Some(
            if cfg!(target_arch = "aarch64") {
                "arm64"
            } else if cfg!(target_arch = "x86_64") {
                "amd64"
            } else {
                std::env::consts::ARCH
            }
            .into(),
        ),
    );
    put("os.type", Some(if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS }.into()));
    let container =
        ["/proc/self/cgroup", "/proc/self/mountinfo"].into_iter().find_map(|path| container_id(&file(path)?).map(str::to_owned));
    put("container.id", container.map(Value::from));
    // As the downward API is usually given to a pod.
    put("k8s.pod.name", variable("K8S_POD_NAME").or_else(|| variable("POD_NAME")).map(Value::from));
    put("k8s.pod.uid", variable("K8S_POD_UID").or_else(|| variable("POD_UID")).map(Value::from));
    put("k8s.namespace.name", variable("K8S_NAMESPACE_NAME").or_else(|| variable("POD_NAMESPACE")).map(Value::from));
    put("k8s.node.name", variable("K8S_NODE_NAME").or_else(|| variable("NODE_NAME")).map(Value::from));
    put("telemetry.sdk.name", Some("opentelemetry".into()));
    put("telemetry.sdk.language", Some("rust".into()));
    put("telemetry.distro.name", Some("firstfall-agent".into()));
    put("telemetry.distro.version", Some(env!("CARGO_PKG_VERSION").into()));
    put("service.instance.id", Some(instance_id().into()));
    let told = |text: &str| (!text.is_empty()).then(|| Value::from(text.to_owned()));
    put("service.name", told(&agent.service));
    put("service.version", told(&agent.version));
    put("service.namespace", told(&agent.namespace));
    put("deployment.environment.name", told(&agent.environment));
    all.extend(agent.attributes.iter().cloned());
    all
}

/// What is found out, over it what code says, and over that `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, which the SDK reads.
pub(crate) fn of(agent: &Agent) -> Resource {
    let environment = Resource::builder().build();
    let told = environment.iter().filter(|(key, value)| {
        // The SDK's placeholder for a missing name, and its own name.
        let placeholder = key.as_str() == "service.name" && value.as_str().starts_with("unknown_service");
        !placeholder && key.as_str() != "telemetry.sdk.name"
    });
    let told: Vec<KeyValue> = told.map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    Resource::builder_empty().with_attributes(found(agent)).with_attributes(told).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_its_control_group() {
        let id = "ab".repeat(32);
        for text in
            [format!("0::/docker/{id}"), format!("1:name=systemd:/kubepods/pod1/cri-containerd-{id}.scope"), format!("12 3 /var/{id}/x rw")]
        {
            assert_eq!(container_id(&text), Some(id.as_str()), "{text}");
        }
        assert_eq!(container_id("0::/user.slice/session-1.scope"), None);
    }

    #[test]
    fn code_says_who_it_is() {
        let resource = of(&Agent::new("shop").version("1.2").attribute("team", "blue"));
        let get = |key: &'static str| resource.get(&opentelemetry::Key::new(key)).map(|v| v.to_string());
        assert_eq!(
            (get("service.name"), get("service.version"), get("team")),
            (Some("shop".into()), Some("1.2".into()), Some("blue".into()))
        );
        assert!(get("process.pid").is_some() && get("service.instance.id").is_some() && get("telemetry.distro.name").is_some());
    }
}
