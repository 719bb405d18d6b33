//! A registry that has nothing: for tests in which nothing is looked up there.

use kubemeter::metering::{Caller, Error, Listing, Page};
use kubemeter::registry::{HasSpec, Kind, Registry};

pub struct Nowhere;

fn nothing<T>() -> Result<T, Error> {
    Err(Error::NotFound("this registry has nothing".to_owned()))
}

impl Registry for Nowhere {
    async fn create<K: Kind>(&self, _: &Caller, _: K) -> Result<K, Error> {
        nothing()
    }
    async fn get<K: Kind>(&self, _: &Caller, _: &str) -> Result<K, Error> {
        nothing()
    }
    async fn list<K: Kind>(&self, _: &Caller, _: Page) -> Result<Listing<K>, Error> {
        nothing()
    }
    async fn replace<K: Kind + HasSpec>(&self, _: &Caller, _: K) -> Result<K, Error> {
        nothing()
    }
    async fn delete<K: Kind>(&self, _: &Caller, _: &str) -> Result<(), Error> {
        nothing()
    }
}
