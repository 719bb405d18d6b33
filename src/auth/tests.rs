//! Who is let in, by a reviewer that counts what it is asked. The same against a real API server: tests/it/rights.rs.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderMap;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::*;

const USER: &str = "system:serviceaccount:shop:checkout";
const KEY: &str = "0123456789abcdef0123456789abcdef";

/// Knows the token `good`; of it, whatever is in `rights`.
#[derive(Default)]
struct State {
    rights: Vec<&'static str>,
    away: bool,
    refuses: bool,
    asked: HashMap<&'static str, usize>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn asked(&self, what: &'static str) -> usize {
        self.0.lock().unwrap().asked.get(what).copied().unwrap_or_default()
    }

    fn set(&self, rights: &[&'static str], away: bool) {
        let mut state = self.0.lock().unwrap();
        state.rights = rights.to_vec();
        state.away = away;
    }

    async fn answer<T>(&self, what: &'static str, answer: impl FnOnce(&State) -> T) -> Result<T, Unavailable> {
        *self.0.lock().unwrap().asked.entry(what).or_default() += 1;
        // Others come meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let state = self.0.lock().unwrap();
        if state.refuses {
            return Err(Unavailable::Refused("busy".to_owned()));
        }
        if state.away { Err(Unavailable::Away("away".to_owned())) } else { Ok(answer(&state)) }
    }
}

impl Reviewer for Fake {
    fn user<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Result<Arc<User>, String>, Unavailable>> {
        let known = token.starts_with("good");
        self.answer("user", move |_| known.then(|| Arc::new(User::named(USER))).ok_or_else(|| "unknown".to_owned())).boxed()
    }

    fn may<'a>(&'a self, _: &'a User, right: &'a Right) -> BoxFuture<'a, Result<bool, Unavailable>> {
        self.answer("may", |state| state.rights.contains(&right.to_string().as_str())).boxed()
    }
}

const INGEST: &str = "create usageevents of kubemeter.io in namespace shop";
const SHORT: Times = Times { yes: Duration::from_secs(1), no: Duration::from_millis(200), stale: Duration::ZERO };
const LONG: Times = Times { yes: Duration::from_secs(600), no: Duration::from_secs(600), stale: Duration::from_secs(600) };

fn door(fake: &Fake, times: Times, keys: Option<Keys>) -> Auth {
    Auth::on(Cached::new(fake.clone(), times).unwrap(), keys.map(Arc::new), "kubemeter".to_owned(), "kubemeter".to_owned())
}

fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
    given.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
}

async fn enter(auth: &Auth, given: &[(&'static str, &str)], namespace: Option<&str>, action: Action<'_>) -> Result<ActsAs, Error> {
    let identity = auth.identify(&headers(given)).await?;
    let namespace = namespace.map(str::to_owned).or_else(|| identity.namespace()).unwrap_or_default();
    auth.allow(&identity, &namespace, action).await?;
    Ok(identity.acts_as())
}

const GOOD: &[(&str, &str)] = &[("authorization", "Bearer good")];

fn status(result: &Result<ActsAs, Error>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(Error::Unauthenticated { .. }) => 401,
        Err(Error::Forbidden(_)) => 403,
        Err(Error::Unavailable) => 503,
    }
}

#[tokio::test]
async fn a_caller_is_asked_for_once_however_many_come() {
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, LONG, None);
    let all = futures::future::join_all((0..50).map(|_| enter(&auth, GOOD, None, Action::Ingest))).await;
    assert!(all.iter().all(|one| matches!(one, Ok(ActsAs::Token(token)) if token == "good")), "{all:?}");
    assert_eq!((fake.asked("user"), fake.asked("may")), (1, 1));
    // Another right is another question, and another token another caller.
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Cancel).await), 403);
    assert_eq!(status(&enter(&auth, GOOD, Some("other"), Action::Ingest).await), 403);
    assert_eq!((fake.asked("user"), fake.asked("may")), (1, 3));
    assert_eq!(status(&enter(&auth, &[("authorization", "Bearer good2")], None, Action::Ingest).await), 200);
    assert_eq!((fake.asked("user"), fake.asked("may")), (2, 4));
}

#[tokio::test]
async fn who_goes_away_while_the_review_is_under_way_takes_nobody_with_them() {
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, LONG, None);
    let first = tokio::spawn({
        let auth = auth.clone();
        async move { enter(&auth, GOOD, None, Action::Ingest).await }
    });
    while fake.asked("user") == 0 {
        tokio::task::yield_now().await;
    }
    let (second, ()) = tokio::join!(enter(&auth, GOOD, None, Action::Ingest), async { first.abort() });
    assert_eq!(status(&second), 200);
}

#[tokio::test]
async fn strangers_are_told_what_to_send() {
    let auth = door(&Fake::default(), LONG, None);
    for (given, says) in [
        (
            &[][..],
            "no credentials: send Authorization: Bearer TOKEN, as `kubectl create token SERVICE_ACCOUNT --namespace NAMESPACE --audience kubemeter`",
        ),
        (&[("authorization", "Basic eA==")], "write Bearer"),
        (&[("authorization", "Bearer ")], "write Bearer"),
        (&[("authorization", "Bearer bad")], "does not take this token (unknown): send Authorization"),
        (&[("x-api-key", KEY)], "nobody has this key"),
        (&[("authorization", "Bearer good"), ("x-api-key", KEY)], "not both"),
    ] {
        let refused = enter(&auth, given, None, Action::Ingest).await;
        assert!(refused.as_ref().is_err_and(|why| why.to_string().contains(says)), "{given:?}: {refused:?}");
        assert_eq!(status(&refused), 401);
    }
    // The API server itself gets the token for its own objects; without one nobody is let through to it.
    assert_eq!(status(&enter(&auth, &[], None, Action::Proxy).await), 401);
    assert_eq!(status(&enter(&auth, &[("authorization", "Bearer bad")], None, Action::Proxy).await), 401);
    assert!(matches!(enter(&auth, GOOD, None, Action::Proxy).await, Ok(ActsAs::Token(_))));
    // Off, there is nobody to ask.
    assert!(matches!(enter(&Auth::off(), &[], None, Action::Cancel).await, Ok(ActsAs::Gateway)));
}

#[tokio::test]
async fn what_was_said_is_believed_for_its_time_and_no_longer() {
    let fake = Fake::default();
    let auth = door(&fake, SHORT, None);
    let now = async || status(&enter(&auth, GOOD, None, Action::Ingest).await);
    let until = async |expected: u16| {
        let start = tokio::time::Instant::now();
        while now().await != expected {
            assert!(start.elapsed() < Duration::from_secs(10), "never {expected}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        start.elapsed()
    };
    assert_eq!(now().await, 403);
    fake.set(&[INGEST], false);
    assert_eq!(now().await, 403, "the no is known");
    until(200).await;
    fake.set(&[], false);
    assert_eq!(now().await, 200, "the yes is known");
    let took = until(403).await;
    assert!(took > SHORT.yes / 2, "a yes is believed for longer than a no: {took:?}");
}

#[tokio::test]
async fn an_api_server_that_is_away_keeps_strangers_out_and_lets_known_callers_go_on() {
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, SHORT, None);
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    fake.set(&[INGEST], true);
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Cancel).await), 503, "a right that was not asked for");
    assert_eq!(status(&enter(&auth, &[("authorization", "Bearer good2")], None, Action::Ingest).await), 503);
    let start = tokio::time::Instant::now();
    while status(&enter(&auth, GOOD, None, Action::Ingest).await) != 503 {
        assert!(start.elapsed() < Duration::from_secs(10), "it is known for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // That nobody answered is not remembered.
    fake.set(&[INGEST], false);
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
}

const STALE: Times = Times { yes: Duration::from_millis(100), no: Duration::from_millis(100), stale: Duration::from_secs(3) };

/// Long enough for every yes to have ended.
async fn a_yes_has_ended() {
    tokio::time::sleep(STALE.yes * 2).await;
}

#[tokio::test]
async fn while_it_is_away_its_last_yes_holds_for_a_bounded_time_and_nothing_else_does() {
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, STALE, None);
    let begin = tokio::time::Instant::now();
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    fake.set(&[INGEST], true);
    a_yes_has_ended().await;
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200, "known");
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Cancel).await), 503, "a right that was never asked for");
    assert_eq!(status(&enter(&auth, &[("authorization", "Bearer good2")], None, Action::Ingest).await), 503, "a stranger");

    // Known callers don't wait for it each.
    let asked = fake.asked("user") + fake.asked("may");
    for _ in 0..50 {
        assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    }
    assert!(fake.asked("user") + fake.asked("may") - asked < 10, "it is asked for every call");

    while status(&enter(&auth, GOOD, None, Action::Ingest).await) == 200 {
        assert!(begin.elapsed() < STALE.stale * 3, "it goes on for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begin.elapsed() >= STALE.stale, "it ended after {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_right_that_was_taken_away_ends_as_soon_as_the_api_server_says_so_and_does_not_come_back() {
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, STALE, None);
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    fake.set(&[], false);
    a_yes_has_ended().await;
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 403);
    fake.set(&[], true);
    a_yes_has_ended().await;
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 503);

    // One that refuses to answer is not away.
    fake.set(&[INGEST], false);
    a_yes_has_ended().await;
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 200);
    fake.0.lock().unwrap().refuses = true;
    a_yes_has_ended().await;
    assert_eq!(status(&enter(&auth, GOOD, None, Action::Ingest).await), 503);
}

#[tokio::test]
async fn nobody_goes_on_for_longer_than_the_token_says() {
    use base64::Engine as _;
    let token = |end: i64| {
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{end}}}"#));
        format!("Bearer good.{claims}.s")
    };
    let fake = Fake::default();
    fake.set(&[INGEST], false);
    let auth = door(&fake, STALE, None);
    let now = jiff::Timestamp::now().as_second();
    let (short, long) = (token(now - 1), token(now + 600));
    for (away, short_is, long_is) in [(false, 200, 200), (true, 503, 200)] {
        fake.set(&[INGEST], away);
        a_yes_has_ended().await;
        assert_eq!(status(&enter(&auth, &[("authorization", &long)], None, Action::Ingest).await), long_is);
        assert_eq!(status(&enter(&auth, &[("authorization", &short)], None, Action::Ingest).await), short_is);
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn sha256(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_api_key_may_what_its_line_says() {
    let fake = Fake::default();
    let keys = file(&format!("# comment\n\n  partner  {}\tshop  ingest,usage\n", sha256(KEY).to_uppercase()));
    let auth = door(&fake, LONG, Some(Keys::open(keys.path()).unwrap()));
    let given = &[("x-api-key", KEY)];
    for (namespace, action, expected) in [
        (None, Action::Ingest, Ok(())),
        (Some("shop"), Action::Usage("calls"), Ok(())),
        (None, Action::List, Err("may not list; to allow it, add that word to its line")),
        (None, Action::Cancel, Err("may not cancel")),
        (None, Action::Revert, Err("may not cancel")),
        (Some("other"), Action::Ingest, Err("is for namespace shop and not for other")),
    ] {
        let answer = enter(&auth, given, namespace, action).await;
        match expected {
            Ok(()) => assert!(matches!(answer, Ok(ActsAs::Nobody)), "{action:?}: {answer:?}"),
            Err(says) => assert!(matches!(&answer, Err(Error::Forbidden(why)) if why.contains(says)), "{action:?}: {answer:?}"),
        }
    }
    assert!(matches!(enter(&auth, given, None, Action::Proxy).await, Ok(ActsAs::Nobody)), "nobody to Kubernetes");
    for wrong in [&KEY[1..], &KEY.to_uppercase(), &sha256(KEY), &"x".repeat(513)] {
        assert_eq!(status(&enter(&auth, &[("x-api-key", wrong)], None, Action::Ingest).await), 401, "{wrong}");
    }
    assert_eq!(fake.asked("user") + fake.asked("may"), 0);

    // A short key is none, whatever the file says.
    let keys = file(&format!("short {} shop ingest", sha256("hunter2")));
    let auth = door(&fake, LONG, Some(Keys::open(keys.path()).unwrap()));
    assert_eq!(status(&enter(&auth, &[("x-api-key", "hunter2")], None, Action::Ingest).await), 401);
}

#[test]
fn a_wrong_file_of_keys_is_refused_with_its_line_and_without_the_key() {
    let hash = sha256(KEY);
    for (text, says) in [
        (format!("a {hash} shop"), "line 1: has 3 fields; write NAME SHA256 NAMESPACE ACTIONS"),
        (format!("\nA {hash} shop ingest"), "line 2: the name is none"),
        (format!("a {KEY} shop ingest"), "line 1: the second field is no SHA-256"),
        (format!("a {hash}0 shop ingest"), "the second field is no SHA-256"),
        (format!("a {} shop ingest", "+1".repeat(32)), "the second field is no SHA-256"),
        (format!("a {} shop ingest", sha256("")), "line 1: this is the hash of no random key"),
        (format!("a {hash} Shop ingest"), "line 1: the namespace is none"),
        (format!("a {hash} shop ingest,all"), "line 1: the actions are unknown: write some of ingest,usage,list,cancel"),
        (format!("a {hash} shop ingest\nb {hash} other usage"), "line 2: its key has a line already"),
        (format!("a {hash} shop ingest\na {} shop usage", sha256("x")), "line 2: there is another key named a"),
        ("#".repeat(1_048_577), "the file is longer than 1048576 bytes"),
    ] {
        let file = file(&text);
        let why = Keys::open(file.path()).err().expect(&text).to_string();
        assert!(why.contains(says) && !why.contains(KEY), "{text:.80}: {why}");
    }
    let why = Keys::open("/nowhere/keys".as_ref()).err().unwrap().to_string();
    assert!(why.starts_with("can't read the API keys file /nowhere/keys"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn the_file_of_keys_is_read_again_and_a_wrong_one_changes_nothing() {
    let file = file(&format!("a {} shop ingest", sha256(KEY)));
    let keys = Arc::new(Keys::open(file.path()).unwrap());
    let stop = CancellationToken::new();
    let watch = tokio::spawn({
        let (keys, stop) = (Arc::clone(&keys), stop.clone());
        async move { keys.watch(stop).await }
    });
    let other = "f".repeat(32);
    let until = async |key: &str, known: bool| {
        tokio::time::timeout(Duration::from_secs(60), async {
            while keys.find(key.as_bytes()).is_some() != known {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{key} is not {known}"));
    };
    std::fs::write(file.path(), format!("b {} shop ingest", sha256(&other))).unwrap();
    until(&other, true).await;
    until(KEY, false).await;
    std::fs::write(file.path(), "nonsense").unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    until(&other, true).await;
    std::fs::write(file.path(), "").unwrap();
    until(&other, false).await;
    stop.cancel();
    watch.await.unwrap();
}

#[test]
fn what_a_token_says_of_itself_is_read_and_nonsense_says_nothing() {
    use base64::Engine as _;
    let of = |claims: &str| claims::of(&format!("h.{}.s", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims)));
    assert!(of(r#"{"aud":"kubemeter"}"#).is_for("kubemeter"));
    assert!(of(r#"{"aud":["other","kubemeter"]}"#).is_for("kubemeter"));
    assert!(!of(r#"{"aud":["other"]}"#).is_for("kubemeter") && !of("{}").is_for("kubemeter") && !of("[").is_for("kubemeter"));
    assert!(!claims::of("opaque").is_for("kubemeter"));
    assert_eq!(of(r#"{"kubernetes.io":{"namespace":"shop"}}"#).namespace().as_deref(), Some("shop"));
    assert_eq!(of(r#"{"sub":"system:serviceaccount:shop:x"}"#).namespace().as_deref(), Some("shop"));
    assert_eq!(of(r#"{"kubernetes.io":{"namespace":"../x"}}"#).namespace(), None);
}
