//! Where Meters and Customers are kept and edited: the Kubernetes API, or a folder of manifests in `dev`.

pub mod folder;

use std::fmt::Debug;
use std::future::Future;

use k8s_openapi::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Customer, Meter};
use crate::metering::{Caller, Error, Listing, Page};

mod kube;

pub use self::kube::KubeRegistry;

/// The two kinds of object that a registry keeps.
pub trait Kind:
    ::kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl Kind for Meter {}
impl Kind for Customer {}

/// Create, read, update, delete and list objects in the caller's namespace, with the caller's rights.
pub trait Registry: Send + Sync + 'static {
    /// Errors: [`Error::Conflict`] when the name is taken; [`Error::Upstream`] when the spec is refused.
    fn create<K: Kind>(&self, caller: &Caller, object: K) -> impl Future<Output = Result<K, Error>> + Send;
    /// Errors: [`Error::NotFound`].
    fn get<K: Kind>(&self, caller: &Caller, name: &str) -> impl Future<Output = Result<K, Error>> + Send;
    /// A page in the registry's own order and with its own continue token.
    fn list<K: Kind>(&self, caller: &Caller, page: Page) -> impl Future<Output = Result<Listing<K>, Error>> + Send;
    /// Replaces the spec of the object with the name in `object.metadata.name`; keeps its labels, annotations and
    /// finalizers. Errors: [`Error::NotFound`]; [`Error::Conflict`] when `object.metadata.resourceVersion` is set and
    /// stale.
    fn replace<K: Kind + HasSpec>(&self, caller: &Caller, object: K) -> impl Future<Output = Result<K, Error>> + Send;
    /// Errors: [`Error::NotFound`].
    fn delete<K: Kind>(&self, caller: &Caller, name: &str) -> impl Future<Output = Result<(), Error>> + Send;
}

/// An object whose spec can be put in another's place.
pub trait HasSpec {
    /// Takes over the other's spec and nothing else.
    fn set_spec_from(&mut self, other: Self);
}

impl HasSpec for Meter {
    fn set_spec_from(&mut self, other: Self) {
        self.spec = other.spec;
    }
}

impl HasSpec for Customer {
    fn set_spec_from(&mut self, other: Self) {
        self.spec = other.spec;
    }
}
