//! `kubemeter check`: sends an event through an installation and sees that it counts, once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use clap::Args;
use http::{Method, Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

/// Pause before something is asked again that was not as it will be.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 * 1_024;
/// CloudEvents `source` of what is sent.
const SOURCE: &str = "kubemeter-check";

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The gateway: `http://HOST:PORT` or `https://HOST:PORT`.
    #[arg(long, env = "KUBEMETER_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// File of the CA certificates, in PEM, by one of which the gateway's is signed; default: those that browsers know.
    #[arg(long, env = "KUBEMETER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// A Meter that counts the events that are sent; its aggregation is Count.
    #[arg(long, env = "KUBEMETER_METER")]
    pub meter: String,
    /// The Meter's event type.
    #[arg(long, env = "KUBEMETER_EVENT_TYPE")]
    pub event_type: String,
    /// Whose usage the event is.
    #[arg(long, env = "KUBEMETER_SUBJECT", default_value = "kubemeter-check")]
    pub subject: String,
    /// Namespace of the Meter.
    #[arg(long, env = "KUBEMETER_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// File with the bearer token that is sent; without it none is sent.
    #[arg(long, env = "KUBEMETER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// How long all of it may take.
    #[arg(long, env = "KUBEMETER_TIMEOUT_SECONDS", default_value_t = 90)]
    pub timeout_seconds: u64,
}

/// Posts an event twice, reads usage until it counts, sees that it counts once, and cancels it.
///
/// # Errors
/// One line that says which step was not as it should be, and what was answered.
pub async fn run(args: CheckArgs) -> Result<(), String> {
    let patience = Duration::from_secs(args.timeout_seconds);
    let call = Call::new(&args).await?;
    // Until it is told otherwise the meter may be younger than what the gateway knows.
    let began = Instant::now();
    let event = json!({"specversion": "1.0", "id": uuid::Uuid::new_v4().to_string(), "source": SOURCE, "type": args.event_type,
        "subject": args.subject, "time": jiff::Timestamp::now().to_string()});
    call.until(began + patience, "the gateway is ready", Method::GET, "/readyz", Value::Null, |_| true).await?;
    println!("{} is ready", args.url);
    for _ in 0..2 {
        call.until(began + patience, "the event is accepted", Method::POST, "/events", event.clone(), |answer| answer["accepted"] == 1)
            .await?;
    }
    println!("event {} was accepted, and accepted again", event["id"]);
    let counted = call.counted(&args, &event, began + patience).await;
    let named = json!({"events": [{"source": SOURCE, "id": event["id"]}], "reason": "kubemeter check"});
    let cancelled = call.until(began + patience, "the event is cancelled", Method::DELETE, "/usage", named, |_| true).await;
    counted?;
    println!("meter {} counted it once", args.meter);
    cancelled?;
    println!("and it was taken back");
    Ok(())
}

/// How the gateway is called.
struct Call {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    url: String,
    namespace: String,
    token: Option<String>,
}

impl Call {
    async fn new(args: &CheckArgs) -> Result<Self, String> {
        let token = match &args.token_file {
            None => None,
            Some(file) => {
                let text = tokio::fs::read_to_string(file).await;
                Some(text.map_err(|why| format!("can't read the token file {}: {why}", file.display()))?.trim().to_owned())
            }
        };
        let uri: Uri = args.url.parse().map_err(|why| format!("{:?} is no URL: {why}", args.url))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(format!("{:?} is not of the form http://HOST:PORT or https://HOST:PORT", args.url));
        }
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector(args.ca_file.as_deref()).await?),
            url: args.url.trim_end_matches('/').to_owned(),
            namespace: args.namespace.clone(),
            token,
        })
    }

    /// Waits until the event shows in the usage of its own millisecond, which must then be one.
    async fn counted(&self, args: &CheckArgs, event: &Value, deadline: Instant) -> Result<(), String> {
        let time = event["time"].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok()).ok_or("the time is none")?;
        let from = jiff::Timestamp::from_millisecond(time.as_millisecond()).map_err(|why| why.to_string())?;
        let to = jiff::Timestamp::from_millisecond(time.as_millisecond() + 1).map_err(|why| why.to_string())?;
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("from", &from.to_string())
            .append_pair("to", &to.to_string())
            .append_pair("subject", &args.subject)
            .finish();
        let path = format!("/usage/{}?{query}", args.meter);
        let there = |answer: &Value| answer["data"].as_array().is_some_and(|rows| !rows.is_empty());
        let answer = self.until(deadline, "the event is counted", Method::GET, &path, Value::Null, there).await?;
        if answer["data"][0]["value"] == "1" { Ok(()) } else { Err(format!("the event does not count once: GET {path} answered {answer}")) }
    }

    /// Asks until the answer is a success that is `enough`, or the time is up.
    async fn until(
        &self,
        deadline: Instant,
        what: &str,
        method: Method,
        path: &str,
        body: Value,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        loop {
            let last = match tokio::time::timeout(REQUEST, self.once(&method, path, &body)).await {
                Ok(Ok((status, answer))) if status.is_success() && enough(&answer) => return Ok(answer),
                Ok(Ok((status, answer))) => format!("{status} {answer}"),
                Ok(Err(why)) => why,
                Err(_) => format!("nothing within {} s", REQUEST.as_secs()),
            };
            if Instant::now() > deadline {
                return Err(format!("not so within the time given: {what}. {method} {path} answered: {last}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(&self, method: &Method, path: &str, body: &Value) -> Result<(StatusCode, Value), String> {
        let sign = if path.contains('?') { '&' } else { '?' };
        let mut request = Request::builder().method(method).uri(format!("{}{path}{sign}namespace={}", self.url, self.namespace));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body).map_err(|why| why.to_string())?;
        let answer = self.client.request(request).await.map_err(|why| chain(&why))?;
        let status = answer.status();
        let bytes = to_bytes(Body::new(answer.into_body()), ANSWER_BYTES).await.map_err(|why| chain(&why))?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))))
    }
}

/// Connections that are plain or TLS, as the URL says.
async fn connector(ca_file: Option<&Path>) -> Result<HttpsConnector<HttpConnector>, String> {
    let builder = HttpsConnectorBuilder::new();
    let provider = rustls::crypto::ring::default_provider();
    let builder = match ca_file {
        None => builder.with_provider_and_webpki_roots(provider).map_err(|why| why.to_string())?,
        Some(file) => {
            let text = tokio::fs::read(file).await.map_err(|why| format!("can't read the CA file {}: {why}", file.display()))?;
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
            if added == 0 {
                return Err(format!("the CA file {} holds no certificate in PEM", file.display()));
            }
            let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
            builder.with_tls_config(config.map_err(|why| why.to_string())?.with_root_certificates(roots).with_no_client_auth())
        }
    };
    Ok(builder.https_or_http().enable_http1().build())
}

/// An error and what it came of.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
