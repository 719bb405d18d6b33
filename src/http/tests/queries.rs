//! Questions for usage, their answers in JSON and CSV, and cancellations.

use std::sync::Arc;

use super::fake::Fake;
use super::*;

#[tokio::test]
async fn a_question_is_passed_on_checked() {
    let fake = Arc::new(Fake::default());
    let uri = "/usage/calls?from=2026-03-01T00:00:00%2B01:00&to=2026-04-01T00:00:00.0001Z&windowSize=DAY&windowTimeZone=europe/paris\
               &customer=acme&customer=b%26c&subject=s%00%F0%9F%92%A9&groupBy=method&groupBy=customer&groupBy=method\
               &filter[method]=GET&filter%5Bmethod%5D=PO+ST&filter[path]=";
    let answer = send(&fake, bare("GET", uri)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let call = "calls Some(2026-02-28T23:00:00Z) Some(2026-04-01T00:00:00.001Z) Some(Day) Europe/Paris [\"acme\", \"b&c\"] [\"s\\0💩\"] \
                {\"customer\", \"method\"} {\"method\": [\"GET\", \"PO ST\"], \"path\": [\"\"]}";
    assert!(fake.last().ends_with(call), "{}", fake.last());
    let body = answer.json();
    assert_eq!(
        (&body["from"], &body["windowSize"], &body["windowTimeZone"]),
        (&"2026-02-28T23:00:00Z".into(), &"DAY".into(), &"Europe/Paris".into())
    );
    assert_eq!(body["data"][1]["value"], "12345678901234567890.123456789");

    send(&fake, bare("GET", "/usage/calls")).await;
    assert!(fake.last().ends_with("calls None None None UTC [] [] {} {}"), "{}", fake.last());
}

#[tokio::test]
async fn an_error_names_the_parameter_and_says_what_to_write() {
    let long = "x".repeat(1025);
    let many = "customer=a&".repeat(1001);
    for (query, says) in [
        ("from=yesterday", "from: \"yesterday\" is no RFC 3339 time: write it like 2026-01-31T00:00:00Z"),
        ("from=2026-01-31", "from: "),
        ("from=2026-01-31T00:00:00", "from: "),
        ("from=2026-02-30T00:00:00Z", "from: "),
        ("from=2026-01-31T00:00:00Z[UTC]", "from: "),
        ("from=20260131T000000Z", "from: "),
        ("from=0026-01-31T00:00:00Z", "from: \"0026-01-31T00:00:00Z\" is outside the years 1900 to 2299"),
        (
            "to=2026-01-31T00:00:00+01:00",
            "to: \"2026-01-31T00:00:00 01:00\" is no RFC 3339 time: write it like 2026-01-31T00:00:00Z (a + in a URL is a space: write %2B)",
        ),
        ("from=2026-01-31T00:00:00Z&to=2026-01-31T00:00:00Z", "from: 2026-01-31T00:00:00Z is not before to (2026-01-31T00:00:00Z)"),
        ("windowSize=FORTNIGHT", "windowSize: \"FORTNIGHT\" is none: write MINUTE, HOUR, DAY, WEEK or MONTH"),
        ("windowSize=day", "windowSize: "),
        (
            "windowTimeZone=Mars/Olympus",
            "windowTimeZone: \"Mars/Olympus\" is no time zone of the IANA database: write one like Europe/Paris",
        ),
        ("windowTimeZone=EST5EDT4,M3.2.0,M11.1.0", "windowTimeZone: "),
        ("windowTimeZone=local", "windowTimeZone: "),
        ("windowTimeZone=%2B01:00", "windowTimeZone: "),
        ("windowTimeZone=Etc/Unknown", "windowTimeZone: "),
        ("windowTimeZone=../../etc/passwd", "windowTimeZone: "),
        ("windowTimeZone=", "windowTimeZone: "),
        ("customer=", "customer: is empty"),
        (&format!("subject={long}"), "subject: is 1025 bytes long; at most 1024 are allowed"),
        (&many[..many.len() - 1], "customer: has 1001 values; at most 1000 are allowed"),
        ("groupBy=a%60b", "groupBy: \"a`b\" a group name is"),
        ("groupBy=", "groupBy: is empty"),
        ("filter[customer]=a", "filter[\"customer\"]: is built in: write customer by itself"),
        ("filter[a%27b]=1", "filter[\"a'b\"]: a group name is"),
        (
            "filter=1",
            "\"filter\": is no parameter here; there are namespace, from, to, windowSize, windowTimeZone, customer, subject, groupBy, filter[NAME]",
        ),
        ("customer=%FF", "query: its percent-encoded bytes are not UTF-8"),
    ] {
        let fake = Arc::new(Fake::default());
        let detail = send(&fake, bare("GET", &format!("/usage/calls?{query}"))).await.problem(400, "invalid_parameter");
        assert!(detail.starts_with(says), "{query}: {detail}");
        assert_eq!(fake.last(), "");
    }
}

#[tokio::test]
async fn csv_has_the_same_rows() {
    let fake = Arc::new(Fake::default());
    let csv = async |query: &str| {
        let answer =
            send(&fake, request("GET", &format!("/usage/calls?{query}")).header("accept", "text/csv").body(Body::empty()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/csv; charset=utf-8; header=present"));
        assert_eq!(answer.header("vary"), "accept");
        answer.text()
    };
    assert_eq!(
        csv("from=2026-01-01T00:00:00Z&groupBy=subject&groupBy=method&groupBy=customer").await,
        "windowStart,windowEnd,customer,subject,method,value\n\
         2026-01-01T00:00:00Z,,\"acme, \"\"Inc\"\"\",=1+1,GET,-1234.500000000001\n\
         2026-01-01T00:00:00Z,,\"acme, \"\"Inc\"\"\",=1+1,,12345678901234567890.123456789\n"
    );
    assert_eq!(csv("").await, "windowStart,windowEnd,value\n,,-1234.500000000001\n,,12345678901234567890.123456789\n");
    let html = request("GET", "/usage/calls").header("accept", "text/html").body(Body::empty()).unwrap();
    send(&fake, html).await.problem(406, "not_acceptable");
}

#[tokio::test]
async fn events_are_cancelled_by_identity_or_filter() {
    let fake = Arc::new(Fake::default());
    let answer = send(&fake, with_json("DELETE", "/usage", r#"{"events":[{"source":"gw","id":"e2"}],"reason":"double import"}"#)).await;
    let expected = r#"{"cancellationId":"00000000-0000-0000-0000-000000000000","cancelled":1,"notFound":[],"dryRun":false}"#;
    assert_eq!(answer.text(), expected);
    assert!(
        fake.last().contains(r#"Events([EventRef { source: "gw", id: "e2" }]), reason: Some("double import"), dry_run: false"#),
        "{}",
        fake.last()
    );

    let body = r#"{"meterId":"calls","filter":{"customer":"acme","from":"2026-01-01T00:00:00Z","to":"2026-02-01T00:00:00Z","groupBy":{"method":"GET"}},"dryRun":true}"#;
    let answer = send(&fake, with_json("DELETE", "/usage", body)).await;
    assert_eq!(answer.text(), r#"{"cancellationId":null,"cancelled":1,"notFound":[],"dryRun":true}"#);
    let call = fake.last();
    for part in [
        r#"meter_id: "calls""#,
        "from: Some(2026-01-01T00:00:00Z)",
        r#"customers: ["acme"]"#,
        r#"filters: {"method": ["GET"]}"#,
        "dry_run: true",
    ] {
        assert!(call.contains(part), "{part}: {call}");
    }
}

#[tokio::test]
async fn a_cancellation_that_is_not_clear_is_refused() {
    let many = format!(r#"{{"events":[{}]}}"#, vec![r#"{"source":"a","id":"b"}"#; 10_001].join(","));
    let long = format!(r#"{{"events":[{{"source":"a","id":"b"}}],"reason":"{}"}}"#, "x".repeat(1025));
    for (body, says) in [
        ("{}", "events: is missing; write either events, or meterId and filter"),
        (r#"{"events":[]}"#, "events: has 0 entries"),
        (&many, "events: has 10001 entries; write 1 to 10000"),
        (&long, "reason: is 1025 bytes long"),
        (r#"{"events":[{"source":"a","id":""}]}"#, "events[0].id: is empty"),
        (r#"{"events":[{"source":"a","id":"b","time":1}]}"#, "events[0].time: unknown field `time`"),
        (r#"{"events":[{"source":"a","id":"b"}],"meterId":"calls"}"#, "events: stands beside meterId or filter"),
        (r#"{"meterId":"calls"}"#, "filter: is missing"),
        (r#"{"filter":{"customer":"a"}}"#, "meterId: is missing"),
        (r#"{"meterId":"../x","filter":{"customer":"a"}}"#, "meterId: "),
        (r#"{"meterId":"calls","filter":{}}"#, "filter: is empty, which would cancel all"),
        (r#"{"meterId":"calls","filter":{"from":"x"}}"#, "filter.from: \"x\" is no RFC 3339 time"),
        (
            r#"{"meterId":"calls","filter":{"from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}}"#,
            "filter.from: 2026-01-02T00:00:00Z is not before to",
        ),
        (r#"{"meterId":"calls","filter":{"customer":""}}"#, "filter.customer: is empty"),
        (r#"{"meterId":"calls","filter":{"groupBy":{"a`b":"x"}}}"#, "filter.groupBy[\"a`b\"]: "),
        (r#"{"meterId":"calls","filter":{"groupBy":{"subject":"x"}}}"#, "filter.groupBy[\"subject\"]: is built in"),
        (r#"{"meterId":"calls","filter":{"window":"x"}}"#, "filter.window: unknown field `window`"),
    ] {
        let fake = Arc::new(Fake::default());
        let detail = send(&fake, with_json("DELETE", "/usage", body)).await.problem(400, "invalid_body");
        assert!(detail.starts_with(says), "{says}: {detail}");
        assert_eq!(fake.last(), "");
    }
}
