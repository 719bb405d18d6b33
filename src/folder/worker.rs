//! Reconciles the folder's objects, as the controllers do a cluster's.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{Error, Folder, Snapshot};
use crate::api::{Customer, CustomerStatus, Meter, MeterStatus};
use crate::catalog::Catalog;
use crate::reconcile::{self, Notice, Outcome, Reconciler};
use crate::registry::Kind;

/// Watches the folder and reconciles its objects until `stop`; keeps the catalog current. Work that runs is finished.
pub async fn run(folder: Folder, reconciler: Reconciler, catalog: Catalog, stop: CancellationToken) {
    let worker = Worker { folder: folder.clone(), reconciler, catalog, all: Snapshot::default(), plan: Plan::default() };
    tokio::join!(folder.watch(&stop), worker.run(&stop));
}

struct Worker {
    folder: Folder,
    reconciler: Reconciler,
    catalog: Catalog,
    all: Snapshot,
    plan: Plan,
}

/// What is to be done for one object.
enum Job {
    Meter(Meter),
    Customer(Customer, Vec<Customer>),
    ForgetMeter(Meter),
    ForgetCustomer(Customer),
}

/// What came of it: the next status, what to tell, when to come again; or the status that says why not, and the reason.
enum Done {
    Meter(Box<Result<Outcome<MeterStatus>, (MeterStatus, reconcile::Error)>>),
    Customer(Result<Outcome<CustomerStatus>, (CustomerStatus, reconcile::Error)>),
    Forgotten(Result<(), reconcile::Error>),
}

impl Worker {
    async fn run(mut self, stop: &CancellationToken) {
        let mut changes = self.folder.changes();
        let mut running = FuturesUnordered::new();
        self.refresh();
        self.catalog.set_synced();
        loop {
            for uid in self.plan.start(Instant::now()) {
                match self.job(&uid) {
                    Some(job) => running.push(perform(self.reconciler.clone(), uid, job)),
                    None => self.plan.done(Instant::now(), &uid, None),
                }
            }
            let next = self.plan.next();
            tokio::select! {
                () = stop.cancelled() => break,
                Some((uid, name, done)) = running.next() => self.finish(&uid, &name, done),
                changed = changes.changed() => match changed {
                    Ok(()) => self.refresh(),
                    Err(_) => break,
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            }
        }
        while let Some((uid, name, done)) = running.next().await {
            self.finish(&uid, &name, done);
        }
    }

    /// Takes over what is in the folder now.
    fn refresh(&mut self) {
        let before = std::mem::replace(&mut self.all, self.folder.snapshot());
        let (now, all) = (Instant::now(), &self.all);
        let live = all.meters.iter().map(version).chain(all.customers.iter().map(version));
        // An object on its way out is another version of itself: there is something to be done for it.
        let going = all.going_meters.iter().map(version).chain(all.going_customers.iter().map(version)).map(|(uid, _)| (uid, None));
        let versions: HashMap<_, _> = live.chain(going).collect();
        self.plan.observe(now, &versions);
        // Who has a disputed subject depends on the others.
        let customers = |of: &Snapshot| of.customers.iter().map(|c| (c.namespace(), version(c))).collect::<BTreeSet<_>>();
        let touched: BTreeSet<_> =
            customers(&before).symmetric_difference(&customers(all)).map(|(namespace, _)| namespace.clone()).collect();
        all.customers.iter().filter(|c| touched.contains(&c.namespace())).for_each(|c| self.plan.nudge(now, &uid(c)));

        let (meters, customers) = (keys(&all.meters), keys(&all.customers));
        keys(&before.meters).difference(&meters).for_each(|(namespace, name)| self.catalog.remove_meter(namespace, name));
        keys(&before.customers).difference(&customers).for_each(|(namespace, name)| self.catalog.remove_customer(namespace, name));
        all.meters.iter().for_each(|meter| self.catalog.put_meter(meter));
        all.customers.iter().for_each(|customer| self.catalog.put_customer(customer));
    }

    fn job(&self, id: &str) -> Option<Job> {
        let all = &self.all;
        let others = |of: &Customer| {
            let beside = all.customers.iter().filter(|other| uid(*other) != id && other.namespace() == of.namespace());
            beside.cloned().collect::<Vec<_>>()
        };
        let meter = || find(&all.meters, id).map(|meter| Job::Meter(meter.clone()));
        let customer = || find(&all.customers, id).map(|customer| Job::Customer(customer.clone(), others(customer)));
        let going_meter = || find(&all.going_meters, id).map(|meter| Job::ForgetMeter(meter.clone()));
        let going_customer = || find(&all.going_customers, id).map(|customer| Job::ForgetCustomer(customer.clone()));
        meter().or_else(customer).or_else(going_meter).or_else(going_customer)
    }

    /// Takes over what came of a job.
    fn finish(&mut self, id: &str, name: &str, done: Done) {
        let end = match done {
            Done::Meter(end) => {
                let (status, end) = split(*end);
                self.keep(id, name, &status, |worker, meter: Meter| {
                    worker.catalog.put_meter(&meter);
                    replace(&mut worker.all.meters, meter);
                });
                end
            }
            Done::Customer(end) => {
                let (status, end) = split(end);
                self.keep(id, name, &status, |worker, customer: Customer| replace(&mut worker.all.customers, customer));
                end
            }
            Done::Forgotten(end) => end.map(|()| {
                tracing::info!("{name}: removed");
                told(name, self.folder.forgotten(id));
                (Vec::new(), None)
            }),
        };
        match end {
            Ok((notices, requeue)) => {
                notices.iter().for_each(|notice| tell(name, notice));
                self.plan.done(Instant::now(), id, requeue);
            }
            Err(why) => {
                let times = self.plan.failed(Instant::now(), id);
                // The first of a row is news; the others are the same again.
                if times <= 1 {
                    tracing::error!("{name}: {why}; trying again");
                } else {
                    tracing::debug!("{name}: {why}; for the {times}th time");
                }
            }
        }
    }

    /// Keeps a status; `take` gets the object with it, if it is still in the folder.
    fn keep<K: Kind>(&mut self, id: &str, name: &str, status: &impl serde::Serialize, take: impl FnOnce(&mut Self, K)) {
        if let Some(Some(object)) = told(name, self.folder.set_status::<K>(id, status))
            && object.meta().deletion_timestamp.is_none()
        {
            take(self, object);
        }
    }
}

async fn perform(reconciler: Reconciler, uid: String, job: Job) -> (String, String, Done) {
    let (name, done) = match job {
        Job::Meter(meter) => {
            let end = reconciler.meter(&meter).await.map_err(|why| (Reconciler::meter_failed(&meter, &why), why));
            (words(&meter), Done::Meter(Box::new(end)))
        }
        Job::Customer(customer, others) => {
            let end = reconciler.customer(&customer, &others).await.map_err(|why| (Reconciler::customer_failed(&customer, &why), why));
            (words(&customer), Done::Customer(end))
        }
        Job::ForgetMeter(meter) => (words(&meter), Done::Forgotten(reconciler.forget_meter(&meter).await)),
        Job::ForgetCustomer(customer) => (words(&customer), Done::Forgotten(reconciler.forget_customer(&customer).await)),
    };
    (uid, name, done)
}

type End = Result<(Vec<Notice>, Option<Duration>), reconcile::Error>;

fn split<S>(end: Result<Outcome<S>, (S, reconcile::Error)>) -> (S, End) {
    match end {
        Ok(outcome) => (outcome.status, Ok((outcome.notices, outcome.requeue))),
        Err((status, why)) => (status, Err(why)),
    }
}

fn tell(name: &str, notice: &Notice) {
    if notice.warning {
        tracing::warn!("{name}: {} ({})", notice.message, notice.reason.as_str());
    } else {
        tracing::info!("{name}: {} ({})", notice.message, notice.reason.as_str());
    }
}

/// What can't be kept is said; the work goes on from memory.
fn told<T>(name: &str, result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|why| tracing::error!("{name}: {why}")).ok()
}

fn words<K: Kind>(object: &K) -> String {
    format!("{} {}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

fn uid<K: Kind>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

fn version<K: Kind>(object: &K) -> (String, Option<i64>) {
    (uid(object), object.meta().generation)
}

fn find<'a, K: Kind>(all: &'a [K], id: &str) -> Option<&'a K> {
    all.iter().find(|object| object.meta().uid.as_deref() == Some(id))
}

fn replace<K: Kind>(all: &mut [K], object: K) {
    if let Some(place) = all.iter_mut().find(|other| other.meta().uid == object.meta().uid) {
        *place = object;
    }
}

fn keys<K: Kind>(all: &[K]) -> BTreeSet<(String, String)> {
    all.iter().map(|object| (object.namespace().unwrap_or_default(), object.name_any())).collect()
}
