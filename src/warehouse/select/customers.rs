//! Whose a subject is.

use crate::warehouse::sql::identifier;

/// Subjects with their `owner` (another name than the answer's `customer`, which GROUP BY must not take it for): of several that claim one the oldest has it.
pub(super) fn owners(claims: &str) -> String {
    format!("(SELECT subject, argMin(customer, (created, customer)) AS owner FROM {claims} GROUP BY subject)")
}

/// Who claims which subject since when. Needs `{namespace:String}`.
pub(super) fn claims(database: &str) -> String {
    format!("{}.subjects FINAL WHERE namespace = {{namespace:String}}", identifier(database))
}

/// Subjects that are one of `{customers:Array(String)}`: those mapped to it, and the customer's own name where no other has that,
/// as if the customer claimed it after all others.
pub fn subjects_of_customers(database: &str) -> String {
    let own = "SELECT arrayJoin({customers:Array(String)}) AS subject, subject AS customer, toDateTime64('2299-12-31 00:00:00', 3, 'UTC') AS created";
    let claims = format!("(SELECT subject, customer, created FROM {} UNION ALL {own})", claims(database));
    format!("(SELECT subject FROM {} WHERE owner IN {{customers:Array(String)}})", owners(&claims))
}

/// Who has the subjects that one of `{customers:Array(String)}` claims or is named like, so many at most: of several claims the
/// oldest, as in [`owners`]. The inner SELECT finds claims that were taken back, too, which the outer one leaves out.
pub fn owners_of_claimed(database: &str, most: Option<usize>) -> String {
    const CUSTOMERS: &str = "{customers:Array(String)}";
    let (claims, table) = (claims(database), format!("{}.subjects", identifier(database)));
    let limit = most.map(|most| format!(" LIMIT {most}")).unwrap_or_default();
    format!(
        "SELECT subject, argMin(customer, (created, customer)) AS owner FROM {claims} AND (subject IN {CUSTOMERS} OR subject IN \
         (SELECT subject FROM {table} WHERE namespace = {{namespace:String}} AND customer IN {CUSTOMERS})) GROUP BY subject{limit}"
    )
}
