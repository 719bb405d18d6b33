//! The way to the Kubernetes API: configuration, clients, and what its refusals say in one line.

use std::error::Error as _;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue, USER_AGENT};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

use crate::api::{GROUP, VERSION};

/// Longest wait for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether the CRDs are served.
const CRD_POLL: Duration = Duration::from_secs(2);
/// Longest wait for one answer of discovery.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the API server is and who we are: `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
///
/// kube's own layer of retries is off: it would hold a call for up to 160 s while the API server answers 429, 503 or
/// 504. Controllers and watches back off by themselves, and a caller of the gateway is better served by the answer.
///
/// Every call says in its User-Agent which `program` makes it, for the API server's logs and audit.
///
/// # Errors
/// One line that says what is missing.
pub async fn config(program: &str) -> Result<Config, String> {
    let mut config = Config::infer().await.map_err(|why| {
        format!("found no Kubernetes API server ({why}): run in a pod with a service account, or set KUBECONFIG to a kubeconfig file")
    })?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    if let Ok(agent) = HeaderValue::try_from(format!("kubemeter-{program}/{}", env!("CARGO_PKG_VERSION"))) {
        config.headers.push((USER_AGENT, agent));
    }
    Ok(config)
}

/// A client with the process's own rights.
///
/// # Errors
/// One line, when credentials or certificates can't be read.
pub fn client(config: Config) -> Result<Client, String> {
    let url = config.cluster_url.clone();
    Client::try_from(config).map_err(|why| format!("can't make a client for the Kubernetes API server {url}: {}", explain(&why)))
}

/// A client on the connections of `anonymous` whose calls carry a bearer token.
///
/// # Errors
/// When the token can't stand in a header.
pub fn with_token(anonymous: &Client, token: &str) -> Result<Client, http::Error> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
    header.set_sensitive(true);
    let (inner, namespace) = (anonymous.clone(), anonymous.default_namespace().to_owned());
    let service = tower::service_fn(move |mut request: http::Request<Body>| {
        request.headers_mut().insert(AUTHORIZATION, header.clone());
        let inner = inner.clone();
        async move { inner.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

/// A client that tells whenever the API server says something: an answer's beginning, and each part of one that goes on,
/// as that of a watch does.
pub fn listening(client: &Client, heard: impl Fn() + Clone + Send + Sync + 'static) -> Client {
    let (inner, namespace) = (client.clone(), client.default_namespace().to_owned());
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (inner, heard) = (inner.clone(), heard.clone());
        async move {
            let response = inner.send(request).await?;
            let good = response.status().is_success();
            let part = move || good.then(&heard);
            part();
            Ok::<_, kube::Error>(response.map(|body| {
                body.map_frame(move |frame| {
                    part();
                    frame
                })
            }))
        }
    });
    Client::new(service, namespace)
}

/// Waits until the API server serves Meters and Customers. False: `stop` came first.
pub async fn wait_for_crds(client: &Client, stop: &CancellationToken) -> bool {
    let mut said = String::new();
    loop {
        let why = match tokio::time::timeout(DISCOVERY_TIMEOUT, client.list_api_group_resources(&format!("{GROUP}/{VERSION}"))).await {
            Ok(Ok(list)) if ["meters", "customers"].iter().all(|name| list.resources.iter().any(|r| r.name == *name)) => return true,
            Ok(Ok(_)) => not_served(),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => not_served(),
            Ok(Err(why)) => format!("the Kubernetes API server does not answer ({})", explain(&why)),
            Err(_) => format!("the Kubernetes API server does not answer within {} s", DISCOVERY_TIMEOUT.as_secs()),
        };
        if why != said {
            tracing::warn!("{why}; trying again every {} s", CRD_POLL.as_secs());
            said = why;
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(CRD_POLL) => {}
        }
    }
}

fn not_served() -> String {
    format!("the API server does not serve Meters and Customers of {GROUP}/{VERSION}: run `kubectl apply -f crds/`")
}

/// What went wrong in one line, with the causes that kube's own text leaves out.
pub fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// A watch is heard whenever a part of its answer comes, also one that says that nothing changed; an error is no word.
    #[tokio::test]
    async fn each_word_of_the_api_server_is_heard() {
        let (parts, to_come) = futures::channel::mpsc::unbounded::<Result<Frame<bytes::Bytes>, Infallible>>();
        let to_come = Arc::new(std::sync::Mutex::new(Some(to_come)));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let status = if request.uri().path() == "/refused" { 500 } else { 200 };
            let (_, nothing) = futures::channel::mpsc::unbounded();
            let body = StreamBody::new(to_come.lock().unwrap().take().unwrap_or(nothing));
            std::future::ready(Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap()))
        });
        let words = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&words);
        let client = listening(&Client::new(service, "default"), move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let heard = || words.load(Ordering::SeqCst);
        let ask = |path: &str| client.send(http::Request::get(path).body(Body::empty()).unwrap());
        let mut body = ask("/watched").await.unwrap().into_body();
        assert_eq!(heard(), 1);
        for count in 2..4 {
            parts.unbounded_send(Ok(Frame::data("{}".into()))).unwrap();
            body.frame().await.unwrap().unwrap();
            assert_eq!(heard(), count);
        }
        assert_eq!(ask("/refused").await.unwrap().status(), 500);
        assert_eq!(heard(), 3);
    }
}
