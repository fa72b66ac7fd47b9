//! What a request does, in a word or two, from its method and path. Paths that are not in the table get a word of the same make.

use http::Method;

const OF_MART: &str = "/v1/tenants/{tenant}/marts/{mart}";
const FLIGHT: &str = "/arrow.flight.protocol.FlightService/";

/// Longest part of a path that becomes part of a word.
const MOST_WORD_BYTES: usize = 32;

/// The route that a path belongs to, with names in place of what its client names. None where there is nothing, or nothing that asks who
/// it is.
pub fn route(path: &str) -> Option<String> {
    if path.starts_with(FLIGHT) {
        return Some(FLIGHT.to_owned());
    }
    let parts: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    let plain = |part: &str| {
        (1..=MOST_WORD_BYTES).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-')
    };
    Some(match parts.as_slice() {
        ["metrics"] => "/metrics".to_owned(),
        ["v1", "tenants", _, "marts", _, "tables", _, _] => format!("{OF_MART}/tables/{{schema}}/{{table}}"),
        ["v1", "tenants", _, "marts", _, "snapshots", _] => format!("{OF_MART}/snapshots/{{name}}"),
        ["v1", "tenants", _, "marts", _, "sessions", _] => format!("{OF_MART}/sessions/{{session}}"),
        ["v1", "tenants", _, "marts", _, "slow", _, "plan"] => format!("{OF_MART}/slow/{{query}}/plan"),
        ["v1", "tenants", _, "marts", _, word, ..] if plain(word) => format!("{OF_MART}/{word}"),
        ["v1", "tenants", _, "marts", _] => OF_MART.to_owned(),
        ["v1", "tenants", _, "marts"] => "/v1/tenants/{tenant}/marts".to_owned(),
        ["v1", "queries", _] => "/v1/queries/{id}".to_owned(),
        ["v1", "queries", _, "result"] => "/v1/queries/{id}/result".to_owned(),
        ["v1", "tokens", _] => "/v1/tokens/{id}".to_owned(),
        ["v1", word, ..] if plain(word) => format!("/v1/{word}"),
        _ => return None,
    })
}

/// Calls that change who may be here. They are over in a moment, and end others rather than themselves.
pub fn is_administration(path: &str) -> bool {
    path.starts_with("/v1/tokens") || path == "/v1/tenants" || path == "/v1/tenants/{tenant}/marts" || path == OF_MART
}

/// A call of Flight.
pub fn is_flight(path: &str) -> bool {
    path.starts_with(FLIGHT)
}

/// The word for a request to a route; `path` is the route's, `called` the request's own.
pub fn action(method: &Method, path: &str, called: &str) -> String {
    if is_flight(path) {
        return format!("flight.{}", snake(called.rsplit('/').next().unwrap_or_default()));
    }
    let rest = path.strip_prefix(OF_MART).map(|rest| rest.trim_start_matches('/'));
    let word = match (method.as_str(), rest, path) {
        ("POST", Some("query"), _) => "query",
        ("POST", Some("queries"), _) => "query.submit",
        ("PUT", Some("tables/{schema}/{table}"), _) => "load",
        ("POST", Some("sessions"), _) => "session.open",
        ("DELETE", Some("sessions/{session}"), _) => "session.close",
        ("POST", Some("branches"), _) => "branch",
        ("POST", Some("archives"), _) => "archive",
        (_, Some("snapshots" | "snapshots/{name}"), _) => return of_thing(method, "snapshot", false),
        (_, Some(""), _) => return of_thing(method, "mart", true),
        (_, None, "/v1/tenants/{tenant}/marts") => return of_thing(method, "mart", false),
        (_, None, "/v1/tenants") => return of_thing(method, "tenant", false),
        ("DELETE", None, "/v1/tokens/{id}") => "token.revoke",
        (_, None, "/v1/tokens") => return of_thing(method, "token", false),
        ("GET", None, "/v1/queries/{id}") => "query.show",
        ("DELETE", None, "/v1/queries/{id}") => "query.cancel",
        ("GET", None, "/v1/queries/{id}/result") => "query.result",
        _ => {
            let text = rest.unwrap_or_else(|| path.trim_start_matches("/v1/").trim_start_matches('/'));
            let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).collect();
            return parts.join(".");
        }
    };
    word.to_owned()
}

fn of_thing(method: &Method, thing: &str, one: bool) -> String {
    let verb = match (method.as_str(), one) {
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("DELETE", _) => "delete",
        _ => "show",
    };
    format!("{thing}.{verb}")
}

/// `DoGet` as `do_get`; only letters, since a client may call anything.
fn snake(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars().filter(char::is_ascii_alphabetic).take(40) {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_word() {
        let word = |method: Method, path: &str| action(&method, &route(path).expect("it is one"), path);
        let mart = |rest: &str| format!("/v1/tenants/acme/marts/sales{rest}");
        assert_eq!(word(Method::POST, &mart("/query")), "query");
        assert_eq!(word(Method::POST, &mart("/restore")), "restore");
        assert_eq!(word(Method::PUT, &mart("/tables/a/b")), "load");
        assert_eq!(word(Method::GET, &mart("/snapshots")), "snapshot.list");
        assert_eq!(word(Method::DELETE, &mart("/snapshots/x")), "snapshot.delete");
        assert_eq!(word(Method::DELETE, &mart("")), "mart.delete");
        assert_eq!(word(Method::GET, &mart("")), "mart.show");
        assert_eq!(word(Method::POST, "/v1/tokens"), "token.create");
        assert_eq!(word(Method::DELETE, "/v1/tokens/x"), "token.revoke");
        assert_eq!(word(Method::GET, &mart("/positions/1.2.3")), "positions");
        assert_eq!(word(Method::GET, "/metrics"), "metrics");
        assert_eq!(word(Method::POST, &format!("{FLIGHT}GetFlightInfo")), "flight.get_flight_info");
        for nothing in ["/healthz", "/readyz", "/", "/v1", "/v1/%20", "/etc/passwd", "/v1/TENANTS"] {
            assert_eq!(route(nothing), None, "{nothing}");
        }
    }
}
