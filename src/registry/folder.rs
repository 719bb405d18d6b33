//! The folder of manifests as the registry: what `dev` has in the place of the Kubernetes API.

use kube::ResourceExt;
use kube::core::DynamicObject;

use super::{HasSpec, Kind, Registry};
use crate::folder::{Folder, untyped};
use crate::limits;
use crate::metering::{Caller, Error, Listing, Page};

/// Meters and Customers in a folder. There are no accounts on it: every caller may do everything.
#[derive(Clone)]
pub struct FolderRegistry(Folder);

impl FolderRegistry {
    /// The registry of a folder.
    pub const fn new(folder: Folder) -> Self {
        Self(folder)
    }
}

impl Registry for FolderRegistry {
    async fn create<K: Kind>(&self, caller: &Caller, mut object: K) -> Result<K, Error> {
        object.meta_mut().namespace = Some(caller.namespace.clone());
        typed(self.0.create(&untyped(&object).map_err(Error::Internal)?)?)
    }

    async fn get<K: Kind>(&self, caller: &Caller, name: &str) -> Result<K, Error> {
        typed(self.0.object(&key::<K>(caller, name))?)
    }

    /// By name; the continue token is the last name of the page, so that a page stays right when objects come and go.
    async fn list<K: Kind>(&self, caller: &Caller, page: Page) -> Result<Listing<K>, Error> {
        let limit = page.limit.unwrap_or(limits::PAGE_DEFAULT).clamp(1, limits::PAGE_MAX) as usize;
        let mut rest = self.0.objects(&K::kind(&()), &caller.namespace);
        if let Some(last) = page.token {
            rest.retain(|object| object.name_any() > last);
        }
        let more = rest.len() > limit;
        rest.truncate(limit);
        let next = rest.last().filter(|_| more).map(ResourceExt::name_any);
        Ok(Listing { items: rest.into_iter().map(typed).collect::<Result<_, _>>()?, next })
    }

    async fn replace<K: Kind + HasSpec>(&self, caller: &Caller, object: K) -> Result<K, Error> {
        let resource_version = object.resource_version();
        let mut current: K = self.get(caller, &object.name_any()).await?;
        current.set_spec_from(object);
        let mut next = untyped(&current).map_err(Error::Internal)?;
        next.metadata.resource_version = resource_version;
        typed(self.0.replace(&next)?)
    }

    async fn delete<K: Kind>(&self, caller: &Caller, name: &str) -> Result<(), Error> {
        self.0.delete(&key::<K>(caller, name))
    }
}

fn key<K: Kind>(caller: &Caller, name: &str) -> (String, String, String) {
    (K::kind(&()).into_owned(), caller.namespace.clone(), name.to_owned())
}

fn typed<K: Kind>(object: DynamicObject) -> Result<K, Error> {
    object.try_parse().map_err(|why| Error::Internal(why.to_string()))
}
