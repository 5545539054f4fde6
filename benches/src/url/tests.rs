use super::Url;

fn parts(text: &str) -> (bool, String, u16, String, String) {
    let url: Url = text.parse().unwrap();
    let authority = url.authority();
    (url.has_tls, url.host, url.port, url.base_path, authority)
}

#[test]
fn a_url_has_a_scheme_a_host_and_an_optional_port_and_path() {
    let cases = [
        (
            "ws://127.0.0.1:8080",
            (false, "127.0.0.1", 8080, "", "127.0.0.1:8080"),
        ),
        (
            "ws://example.com",
            (false, "example.com", 80, "", "example.com"),
        ),
        (
            "wss://example.com/",
            (true, "example.com", 443, "", "example.com"),
        ),
        (
            "wss://example.com/a/b/",
            (true, "example.com", 443, "/a/b", "example.com"),
        ),
        (
            "ws://[::1]:8080/a",
            (false, "::1", 8080, "/a", "[::1]:8080"),
        ),
    ];
    for (text, (has_tls, host, port, path, authority)) in cases {
        let expected = (has_tls, host.into(), port, path.into(), authority.into());
        assert_eq!(parts(text), expected, "{text}");
    }
}

#[test]
fn other_urls_are_refused_with_an_example() {
    for text in [
        "",
        "127.0.0.1:8080",
        "http://example.com",
        "ws://",
        "ws://user@example.com",
        "ws://example.com?token=secret",
    ] {
        let error = text.parse::<Url>().unwrap_err();
        assert!(error.contains("ws://127.0.0.1:8080"), "{text}: {error}");
        assert!(!error.contains("secret"), "{text}: {error}");
    }
}
