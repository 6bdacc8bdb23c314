//! What the agent may use at most.
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Limits of the agent. Requests equal them unless `requests` says less.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// CPU, such as `500m` or `2`; at least `10m` and at most `1000000`.
    #[serde(default = "default_cpu")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?m?$') && quantity(self).compareTo(quantity('10m')) >= 0 && quantity(self).compareTo(quantity('1000000')) <= 0").message("resources.cpu must be a quantity of at least 10m and at most 1000000, such as 500m or 2"))]
    pub cpu: String,
    /// Memory, such as `512Mi`; at least `16Mi` and at most `8Pi`. There is no swap.
    #[serde(default = "default_memory")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$') && quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('8Pi')) <= 0").message("resources.memory must be a quantity of at least 16Mi and at most 8Pi, such as 512Mi"))]
    pub memory: String,
    /// Disk that the node lends: logs, the writable layer (there is none) and every emptyDir; at least `1Mi` and at
    /// most `8Pi`.
    #[serde(default = "default_ephemeral_storage")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$') && quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('8Pi')) <= 0").message("resources.ephemeralStorage must be a quantity of at least 1Mi and at most 8Pi, such as 1Gi"))]
    pub ephemeral_storage: String,
    /// Processes and threads at one time, 4 to 32768.
    #[serde(default = "default_pids")]
    #[x_kube(validation = Rule::new("self >= 4 && self <= 32768").message("resources.pids must be from 4 to 32768"))]
    pub pids: i64,
    /// What the scheduler sets aside, where that is less than the limits. Without it all of them are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// What the scheduler sets aside; at most the limits.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requests {
    /// CPU, such as `100m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?m?$')").message("resources.requests.cpu must be a quantity such as 100m"))]
    pub cpu: Option<String>,
    /// Memory, such as `128Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$')").message("resources.requests.memory must be a quantity such as 128Mi"))]
    pub memory: Option<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: default_cpu(),
            memory: default_memory(),
            ephemeral_storage: default_ephemeral_storage(),
            pids: default_pids(),
            requests: None,
        }
    }
}

fn default_cpu() -> String {
    "1".to_owned()
}

fn default_memory() -> String {
    "1Gi".to_owned()
}

fn default_ephemeral_storage() -> String {
    "1Gi".to_owned()
}

fn default_pids() -> i64 {
    256
}
