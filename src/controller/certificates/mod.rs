//! The gateway's certificate and the authorities that sign it, in two Secrets of the operator's own namespace. The
//! replica that leads makes them and makes them anew in time; nobody else writes them.
mod decide;
mod make;
mod material;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

pub use make::MakeError;

use super::error::{Doing, Error};
use super::field_managers;
use super::lease::Fence;
use decide::{Renewal, leaf_is_due, renewal};
use material::{Authority, Pair, read_leaf, write_leaf};

/// Secret with the authorities' certificates and keys.
pub const AUTHORITY_SECRET: &str = "agentsandbox-egress-ca";
/// Secret with the gateway's certificate and key, which its Pods mount.
pub const GATEWAY_SECRET: &str = "agentsandbox-gateway-tls";

/// What both Secrets hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    authority: Authority,
    leaf: Option<Pair>,
}

/// What is used now.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct InForce {
    /// Every authority that a sandbox should know, PEM.
    pub bundle: String,
    /// See [`crate::plan::Settings::directory_key`].
    pub directory_key: [u8; 32],
    /// When the authority that signs ends, in seconds since the epoch.
    pub authority_until: i64,
    /// When the gateway's certificate ends.
    pub leaf_until: i64,
}

/// `held` as it should be at `now`, for a gateway of this `name`.
fn advance(now: i64, mut held: Held, name: &str) -> Result<Held, MakeError> {
    // Create and Stage, or Promote and Prune, can be due at once; more than three never are.
    for _ in 0..3 {
        let authority = &mut held.authority;
        match renewal(now, authority) {
            Renewal::Keep => break,
            Renewal::Create => {
                let old = authority.signer.replace(make::authority(now, name)?);
                authority.earlier.extend(old.map(|pair| pair.certificate));
            }
            Renewal::Stage => authority.next = Some(make::authority(now, name)?),
            Renewal::Promote => {
                let old = std::mem::replace(&mut authority.signer, authority.next.take());
                authority.earlier.extend(old.map(|pair| pair.certificate));
            }
            Renewal::Prune => {}
        }
        authority.earlier.retain(|certificate| now < certificate.until);
    }
    if let Some(signer) = &held.authority.signer
        && leaf_is_due(now, &signer.certificate, held.leaf.as_ref(), name)
    {
        held.leaf = Some(make::leaf(now, signer, name)?);
    }
    Ok(held)
}

/// Keeper of the two Secrets.
pub struct Certificates {
    api: Api<Secret>,
    fence: Fence,
    name: String,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Certificates").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Certificates {
    /// The keeper in `namespace`, for a gateway of this `name`.
    pub fn new(client: Client, namespace: &str, name: &str, fence: Fence) -> Self {
        Self { api: Api::namespaced(client, namespace), fence, name: name.to_owned() }
    }

    /// Writes what is due at `now` and says what is used from then on.
    pub async fn ensure(&self, now: Timestamp) -> Result<InForce, Error> {
        let authority =
            self.api.get_opt(AUTHORITY_SECRET).await.doing("read the Secret of the authorities")?;
        let leaf = self.api.get_opt(GATEWAY_SECRET).await.doing("read the Secret of the gateway")?;
        let data = |secret: &Option<Secret>| secret.as_ref().and_then(|s| s.data.clone()).unwrap_or_default();
        let before = Held { authority: Authority::read(&data(&authority)), leaf: read_leaf(&data(&leaf)) };
        let after = advance(now.as_second(), before.clone(), &self.name)?;
        // The authorities first: a certificate that nobody can check is of no use.
        if after.authority != before.authority {
            self.write(AUTHORITY_SECRET, "Opaque", authority.as_ref(), &after.authority.write()).await?;
            tracing::info!(secret = AUTHORITY_SECRET, "the gateway's authorities were renewed");
        }
        let authority = &after.authority;
        let (Some(signer), Some(directory_key), Some(made)) =
            (&authority.signer, authority.derived_key(), &after.leaf)
        else {
            return Err(MakeError::Unreadable.into());
        };
        if after.leaf != before.leaf {
            self.write(GATEWAY_SECRET, "kubernetes.io/tls", leaf.as_ref(), &write_leaf(made)).await?;
            tracing::info!(secret = GATEWAY_SECRET, "the gateway's certificate was renewed");
        }
        Ok(InForce {
            bundle: authority.bundle(),
            directory_key,
            authority_until: signer.certificate.until,
            leaf_until: made.certificate.until,
        })
    }

    /// Makes the Secret, or changes the one that was read; one that changed meanwhile is refused by the API server.
    async fn write(
        &self,
        name: &str,
        kind: &str,
        have: Option<&Secret>,
        want: &BTreeMap<&'static str, Option<String>>,
    ) -> Result<(), Error> {
        if !self.fence.holds() {
            return Err(Error::NotLeader);
        }
        let Some(have) = have else {
            let secret = new_secret(name, kind, want);
            self.api.create(&post(), &secret).await.doing("create a Secret of the gateway's")?;
            return Ok(());
        };
        let body = change(have, want);
        let params = PatchParams {
            field_manager: Some(field_managers::CERTIFICATES.to_owned()),
            ..PatchParams::default()
        };
        self.api
            .patch(name, &params, &Patch::Merge(&body))
            .await
            .doing("change a Secret of the gateway's")?;
        Ok(())
    }
}

fn new_secret(name: &str, kind: &str, want: &BTreeMap<&'static str, Option<String>>) -> Secret {
    let value = |(key, value): (&&'static str, &Option<String>)| {
        Some(((*key).to_owned(), ByteString(value.as_ref()?.clone().into_bytes())))
    };
    let labels = [("app.kubernetes.io/name", "agentsandbox"), ("app.kubernetes.io/component", "gateway")];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        type_: Some(kind.to_owned()),
        data: Some(want.iter().filter_map(value).collect()),
        ..Secret::default()
    }
}

/// The change of `have` to `want`; a null removes a key.
fn change(have: &Secret, want: &BTreeMap<&'static str, Option<String>>) -> Value {
    let data: BTreeMap<&str, Option<ByteString>> = want
        .iter()
        .map(|(key, value)| (*key, value.clone().map(|text| ByteString(text.into_bytes()))))
        .collect();
    json!({
        "metadata": {"resourceVersion": have.metadata.resource_version, "uid": have.metadata.uid},
        "data": data,
    })
}

fn post() -> PostParams {
    PostParams { field_manager: Some(field_managers::CERTIFICATES.to_owned()), ..PostParams::default() }
}
