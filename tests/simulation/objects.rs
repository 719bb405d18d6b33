//! Steps that make, edit and delete Meters and Customers, and wait until everybody knows.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::history::{GATEWAYS, Post};
use super::json::written;
use super::model::{Customer, Meter};
use super::run::{Life, compare, expect_status};
use super::send;
use super::world::{Answer, Request};
use crate::support::eventually;

impl Life {
    pub async fn put_meter(&mut self, space: usize, name: &str, meter: &Meter, http: bool, during: Option<&Post>) -> Result<(), String> {
        let is_there = self.spaces[space].meters.contains_key(name);
        let put = async {
            if !http {
                self.world.put("Meter", space, name, &spec(meter)).await;
                return Ok(());
            }
            let mut document = spec(meter);
            document["meterId"] = json!(name);
            let request = match is_there {
                true => Request::json(Method::PUT, space, &format!("/meters/{name}"), &document),
                false => Request::json(Method::POST, space, "/meters", &document),
            };
            let gateway = space % GATEWAYS;
            expect_made(&self.world.answered(gateway, &request).await, is_there)
        };
        let from = self.now().0;
        let post = async {
            match during {
                None => None,
                Some(post) => Some(self.world.answered(post.gateway, &send::request(post)).await),
            }
        };
        let (put, posted) = tokio::join!(put, post);
        put?;
        self.settle_meter(space, name, meter).await;
        let arrival = (from, self.now().1);
        let (Some(post), Some(answer)) = (during, posted) else { return Ok(()) };
        let outcome = self.spaces[space].post(&post.events, false, arrival);
        compare(&answer, &outcome)
    }

    /// Waits until every gateway answers with a Meter as it is now.
    pub async fn settle_meter(&mut self, space: usize, name: &str, meter: &Meter) {
        eventually(&format!("Meter {name} is ready with unit {}", meter.unit), async || {
            answers_with(&self.world.object("Meter", space, name).await?, meter).then_some(())
        })
        .await;
        for gateway in 0..GATEWAYS {
            eventually(&format!("gateway {gateway} answers with unit {}", meter.unit), async || {
                let answer = self.world.ask(gateway, &Request::get(space, &format!("/usage/{name}"))).await.ok()?;
                (answer.status == 200 && answer.json()["unit"] == meter.unit.as_str()).then_some(())
            })
            .await;
        }
        self.spaces[space].meters.insert(name.to_owned(), meter.clone());
    }

    pub async fn put_customer(&mut self, space: usize, name: &str, subjects: &[String], purge: bool, http: bool) -> Result<(), String> {
        let mut document = json!({"subjects": subjects, "deletionPolicy": if purge { "Purge" } else { "Retain" }});
        if http {
            document["customerId"] = json!(name);
            let is_there = self.spaces[space].customers.contains_key(name);
            let request = match is_there {
                true => Request::json(Method::PUT, space, &format!("/customers/{name}"), &document),
                false => Request::json(Method::POST, space, "/customers", &document),
            };
            expect_made(&self.world.answered(0, &request).await, is_there)?;
        } else {
            self.world.put("Customer", space, name, &document).await;
        }
        self.settle_customer(space, name, subjects.to_vec(), purge).await;
        Ok(())
    }

    /// Gives a subject to a Customer, made where there is none, and takes it from all others that name it.
    pub async fn move_subject(&mut self, space: usize, subject: &str, to: &str, release_first: bool, http: bool) -> Result<(), String> {
        let customers = self.spaces[space].customers.clone();
        let mut puts: Vec<(&str, Vec<String>, bool)> = Vec::new();
        for (name, customer) in customers.iter().filter(|(name, customer)| *name != to && names(customer, subject)) {
            puts.push((name, customer.subjects.iter().filter(|named| *named != subject).cloned().collect(), customer.purge));
        }
        let (mut subjects, purge) = match customers.get(to) {
            Some(taker) if taker.subjects.is_empty() => (vec![to.to_owned()], taker.purge),
            Some(taker) => (taker.subjects.clone(), taker.purge),
            None => (Vec::new(), false),
        };
        if !subjects.iter().any(|named| named == subject) {
            subjects.push(subject.to_owned());
        }
        puts.insert(if release_first { puts.len() } else { 0 }, (to, subjects, purge));
        for (name, subjects, purge) in puts {
            self.put_customer(space, name, &subjects, purge, http).await?;
        }
        Ok(())
    }

    pub async fn settle_customer(&mut self, space: usize, name: &str, subjects: Vec<String>, purge: bool) {
        let created = eventually(&format!("Customer {name} is mapped"), async || {
            let object = self.world.object("Customer", space, name).await?;
            // What ClickHouse has not heard of is tried again.
            is_settled(&object).filter(|ready| ready["reason"] != "ClickHouseUnavailable")?;
            object["metadata"]["creationTimestamp"].as_str().map(str::to_owned)
        })
        .await;
        self.spaces[space].customers.insert(name.to_owned(), Customer { subjects, purge, created });
    }

    pub async fn drop_object(&mut self, kind: &str, space: usize, name: &str, http: bool) -> Result<(), String> {
        let model = &self.spaces[space];
        let (is_there, path) = match kind {
            "Meter" => (model.meters.contains_key(name), format!("/meters/{name}")),
            _ => (model.customers.contains_key(name), format!("/customers/{name}")),
        };
        if http {
            let request = Request { method: Method::DELETE, ..Request::get(space, &path) };
            let answer = self.world.answered(1, &request).await;
            // A try before may have done it.
            expect_status(&answer, if is_there && !(answer.tries > 1 && answer.status == 404) { 202 } else { 404 })?;
        } else if is_there {
            self.world.delete(kind, space, name).await;
        }
        if is_there {
            self.gone(kind, space, name).await;
            match kind {
                "Meter" => drop(self.spaces[space].meters.remove(name)),
                _ => self.spaces[space].drop_customer(name),
            }
        }
        Ok(())
    }

    pub async fn gone(&self, kind: &str, space: usize, name: &str) {
        eventually(&format!("{kind} {name} goes"), async || self.world.object(kind, space, name).await.is_none().then_some(())).await;
        for gateway in (0..GATEWAYS).filter(|_| kind == "Meter") {
            eventually(&format!("gateway {gateway} forgets {name}"), async || {
                (self.world.ask(gateway, &Request::get(space, &format!("/usage/{name}"))).await.ok()?.status == 404).then_some(())
            })
            .await;
        }
    }
}

fn names(customer: &Customer, subject: &str) -> bool {
    customer.subjects.iter().any(|named| named == subject)
}

/// The answer to a request that makes an object or puts another spec in its place.
fn expect_made(answer: &Answer, is_there: bool) -> Result<(), String> {
    match is_there {
        true => expect_status(answer, 200),
        // A try before may have done it.
        false => expect_status(answer, if answer.tries > 1 && answer.status == 409 { 409 } else { 201 }),
    }
}

/// A Meter's spec.
pub fn spec(meter: &Meter) -> Value {
    let groups: BTreeMap<_, _> = meter.groups.iter().map(|(name, path)| (name, written(path))).collect();
    let mut spec =
        json!({"eventType": meter.kind, "aggregation": meter.aggregation, "unit": meter.unit, "deletionPolicy": meter.deletion_policy});
    if !groups.is_empty() {
        spec["groupBy"] = json!(groups);
    }
    if let Some(path) = &meter.value {
        spec["valueProperty"] = json!(written(path));
    }
    spec
}

/// Whether a Meter's status says that it is ready and answers with an edit.
pub fn answers_with(object: &Value, meter: &Meter) -> bool {
    let ready = is_settled(object).is_some_and(|ready| ready["status"] == "True");
    ready && object["status"]["active"]["unit"] == meter.unit.as_str()
}

/// The `Ready` condition, if it speaks of the newest spec.
fn is_settled(object: &Value) -> Option<&Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    (ready["observedGeneration"] == object["metadata"]["generation"]).then_some(ready)
}
