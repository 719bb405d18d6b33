//! What a token says of itself. Nothing here is checked: it only tells whom to ask about it, and where.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::api::is_namespace;

/// The claims of a JSON web token, or none.
#[derive(Deserialize, Default)]
pub struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
    sub: Option<String>,
    aud: Option<Audiences>,
    exp: Option<f64>,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
}

/// RFC 7519, 4.1.3: one or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

/// Reads them; of anything that is no JSON web token there are none.
pub fn of(token: &str) -> Claims {
    let part = token.split('.').nth(1).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}

impl Claims {
    /// Whether it says to be for this audience.
    pub fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            None => false,
            Some(Audiences::One(one)) => one == audience,
            Some(Audiences::Many(many)) => many.iter().any(|one| one == audience),
        }
    }

    /// Whether it says to be good until a time before now (seconds since 1970). One that says nothing is not.
    pub fn is_over(&self, now_s: i64) -> bool {
        self.exp.is_some_and(|end| end <= now_s as f64)
    }

    /// The namespace of its service account.
    pub fn namespace(&self) -> Option<String> {
        let claimed = self.kubernetes.as_ref().and_then(|k| k.namespace.as_deref());
        let named = claimed.or_else(|| service_account(self.sub.as_deref()?).map(|(namespace, _)| namespace))?;
        is_namespace(named).then(|| named.to_owned())
    }
}

/// Namespace and name of a service account, by Kubernetes' name of its user.
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}
