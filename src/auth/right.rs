//! What a call needs, as Kubernetes' rules say it. Pure.

use std::fmt;

use super::claims::service_account;
use crate::api::GROUP;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Passes the caller's token on to the API server, which decides: `/meters`, `/customers`.
    Proxy,
    /// Brings events, or replays refused ones.
    Ingest,
    /// Lists events, refused ones, or cancellations.
    List,
    /// Cancels events.
    Cancel,
    /// Reverts a cancellation.
    Revert,
    /// Reads a meter's usage.
    Usage(&'a str),
}

impl Action<'_> {
    /// The right that it needs in a namespace; none when the API server itself is asked to do it.
    pub fn right(self, namespace: &str) -> Option<Right> {
        let (verb, resource, subresource, name) = match self {
            Self::Proxy => return None,
            Self::Ingest => ("create", "usageevents", None, None),
            Self::List => ("list", "usageevents", None, None),
            Self::Cancel => ("delete", "usageevents", None, None),
            Self::Revert => ("update", "usageevents", None, None),
            Self::Usage(meter) => ("get", "meters", Some("usage"), Some(meter.to_owned())),
        };
        Some(Right { verb, resource, subresource, name, namespace: namespace.to_owned() })
    }
}

/// A verb on a resource of `kubemeter.io` in a namespace.
///
/// `usageevents` and `meters/usage` are no resources that the API server has: they are there for RBAC rules to name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Right {
    pub verb: &'static str,
    pub resource: &'static str,
    pub subresource: Option<&'static str>,
    pub name: Option<String>,
    pub namespace: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if let Some(subresource) = self.subresource {
            write!(f, "/{subresource}")?;
        }
        write!(f, " of {GROUP}")?;
        if let Some(name) = &self.name {
            write!(f, " (of {name})")?;
        }
        write!(f, " in namespace {}", self.namespace)
    }
}

impl Right {
    /// The smallest role of the chart that has it.
    fn role(&self) -> &'static str {
        match (self.verb, self.resource) {
            (_, "meters") => "usage-reader",
            ("create", _) => "ingester",
            ("list", _) => "view",
            _ => "edit",
        }
    }

    /// Says that `user` lacks it, and how to grant it.
    pub fn refusal(&self, user: &str, role_prefix: &str) -> String {
        let role = self.role();
        let namespace = &self.namespace;
        let (binding, subject) = match service_account(user) {
            Some((of, name)) => (format!("{name}-{role}"), format!("--serviceaccount={of}:{name}")),
            None => (format!("kubemeter-{role}"), format!("--user={}", quoted(user))),
        };
        format!(
            "{user} may not {self}; to allow it: kubectl create rolebinding {binding} --namespace={namespace} \
             --clusterrole={role_prefix}:{role} {subject}"
        )
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:@/".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_verb_resource_namespace_and_the_command() {
        let of = |action: Action<'_>, user| action.right("shop").unwrap().refusal(user, "metering:kubemeter");
        assert_eq!(
            of(Action::Usage("calls"), "system:serviceaccount:billing:invoices"),
            "system:serviceaccount:billing:invoices may not get meters/usage of kubemeter.io (of calls) in namespace shop; to allow it: \
             kubectl create rolebinding invoices-usage-reader --namespace=shop --clusterrole=metering:kubemeter:usage-reader \
             --serviceaccount=billing:invoices"
        );
        let refusal = of(Action::Cancel, "ann o'neil");
        assert!(refusal.contains("may not delete usageevents of kubemeter.io in namespace shop;"), "{refusal}");
        assert!(refusal.ends_with(r"--clusterrole=metering:kubemeter:edit --user='ann o'\''neil'"), "{refusal}");
        assert_eq!(Action::Proxy.right("shop"), None);
    }
}
