//! What may be looked at: pages of allowed hosts, and files below one directory.
//!
//! Chromium is asked at two places. Each document that a page loads, redirects and frames included, and each file is stopped and checked
//! here ([`Policy::check`]). What else a page loads is held to the allowed hosts by Chromium's own resolver
//! ([`Policy::resolver_rules`]), which finds no other host, whoever asks: scripts, workers, web sockets.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::snapshot::SnapshotError;

/// Which pages may be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowed {
    /// Names and addresses of hosts: `example.org`, `*.example.org` (not `example.org` itself), `127.0.0.1`, or `*` for every host.
    pub hosts: Vec<String>,
    /// Files below this directory may be looked at, by `file:` URLs; none: no file may.
    pub files: Option<PathBuf>,
}

impl Default for Allowed {
    /// Every host, no file.
    fn default() -> Allowed {
        Allowed { hosts: vec!["*".to_owned()], files: None }
    }
}

/// [`Allowed`], checked.
pub(crate) struct Policy {
    /// In lower case.
    hosts: Vec<String>,
    /// Without links.
    files: Option<PathBuf>,
}

impl Policy {
    /// Refuses what could not be meant.
    pub fn new(allowed: &Allowed) -> Result<Policy, String> {
        let is_plain = |host: &str| {
            let name = host.strip_prefix("*.").unwrap_or(host);
            let letters = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
            host == "*" || !name.is_empty() && name.chars().all(letters)
        };
        if let Some(host) = allowed.hosts.iter().find(|host| !is_plain(host)) {
            return Err(format!(
                "`{host}` is no host: name one (`example.org`), those below one (`*.example.org`), or all (`*`)"
            ));
        }
        let resolved = |files: &PathBuf| {
            files.canonicalize().map_err(|error| format!("the files' root {}: {error}", files.display()))
        };
        Ok(Policy {
            hosts: allowed.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            files: allowed.files.as_ref().map(resolved).transpose()?,
        })
    }

    /// The page that is asked for, if it may be looked at.
    pub fn admit(&self, url: &str) -> Result<Url, SnapshotError> {
        let parsed = Url::parse(url)
            .map_err(|error| SnapshotError::BadRequest { reason: format!("`{url}` is no URL: {error}") })?;
        self.check(&parsed)?;
        Ok(parsed)
    }

    /// Whether a document or a file may be loaded.
    pub fn check(&self, url: &Url) -> Result<(), SnapshotError> {
        match url.scheme() {
            "http" | "https" => self.check_host(url),
            "file" => self.check_file(url),
            other => Err(not_allowed(format!("the scheme {other}: it is http, https or file"))),
        }
    }

    /// For `--host-resolver-rules`; none where every host is allowed.
    pub fn resolver_rules(&self) -> Option<String> {
        if self.hosts.iter().any(|host| host == "*") {
            return None;
        }
        // The resolver has the addresses of IPv6 without the brackets that they have in URLs.
        let plain = |host: &String| host.trim_matches(['[', ']']).to_owned();
        let exceptions = self.hosts.iter().map(|host| format!(", EXCLUDE {}", plain(host)));
        Some(format!("MAP * ~NOTFOUND{}", exceptions.collect::<String>()))
    }

    fn check_host(&self, url: &Url) -> Result<(), SnapshotError> {
        let host = url.host_str().unwrap_or_default();
        // A name may be written with the root's dot.
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_allowed = |pattern: &String| match pattern.strip_prefix('*') {
            Some(end) => end.is_empty() || name.len() > end.len() && name.ends_with(end),
            None => name == pattern,
        };
        match self.hosts.iter().any(is_allowed) {
            true => Ok(()),
            false => Err(not_allowed(format!("the host {host}"))),
        }
    }

    fn check_file(&self, url: &Url) -> Result<(), SnapshotError> {
        let outside = || not_allowed(format!("the file {}", url.path()));
        let root = self.files.as_deref().ok_or_else(outside)?;
        // An encoded separator may mean a file to one who reads it and a directory to another.
        let encoded = url.path().to_ascii_lowercase();
        if ["%2f", "%5c", "%00"].iter().any(|separator| encoded.contains(separator)) {
            return Err(outside());
        }
        let path = url.to_file_path().map_err(|()| outside())?;
        match path.canonicalize() {
            Ok(real) if real.starts_with(root) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.starts_with(root) => {
                Err(SnapshotError::PageFailed { reason: format!("there is no file {}", url.path()) })
            }
            _ => Err(outside()),
        }
    }
}

fn not_allowed(what: String) -> SnapshotError {
    SnapshotError::NotAllowed { what }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn hosts(hosts: &[&str]) -> Policy {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Policy::new(&Allowed { hosts, files: None }).unwrap()
    }

    fn refuses(policy: &Policy, url: &str) -> bool {
        matches!(policy.admit(url), Err(SnapshotError::NotAllowed { .. }))
    }

    #[test]
    fn hosts_are_allowed_by_name_or_below_one() {
        let policy = hosts(&["Example.org", "*.example.net", "127.0.0.1", "[::1]"]);
        for url in [
            "http://example.org/",
            "https://EXAMPLE.org:8443/a",
            "http://example.org./",
            "http://a.b.example.net",
            "http://127.0.0.1:1234/",
            "http://0x7f.1/", // the same address, as Chromium reads it too
            "http://[::1]/",
        ] {
            assert!(policy.admit(url).is_ok(), "{url}");
        }
        for url in [
            "http://example.com/",
            "http://a.example.org/",
            "http://example.net/",
            "http://badexample.net/",
            "http://example.org@evil.example/",
            "http://localhost/",
        ] {
            assert!(refuses(&policy, url), "{url}");
        }
        let rules =
            "MAP * ~NOTFOUND, EXCLUDE example.org, EXCLUDE *.example.net, EXCLUDE 127.0.0.1, EXCLUDE ::1";
        assert_eq!(policy.resolver_rules().as_deref(), Some(rules));
    }

    #[test]
    fn only_pages_and_files_have_schemes_that_are_allowed() {
        let policy = hosts(&["*"]);
        assert!(policy.admit("https://example.org").is_ok());
        assert_eq!(policy.resolver_rules(), None);
        for url in [
            "file:///etc/passwd",
            "chrome://version",
            "javascript:alert(1)",
            "data:text/html,hi",
            "view-source:http://example.org",
            "ftp://example.org/",
        ] {
            assert!(refuses(&policy, url), "{url}");
        }
        assert!(matches!(policy.admit("example.org"), Err(SnapshotError::BadRequest { .. })));
    }

    #[test]
    fn a_host_that_is_none_is_refused_at_the_start() {
        for host in ["", "a, EXCLUDE b", "exa mple.org", "*.*", "*."] {
            let allowed = Allowed { hosts: vec![host.to_owned()], files: None };
            assert!(Policy::new(&allowed).is_err(), "{host}");
        }
    }

    #[test]
    fn files_are_allowed_below_the_root_whatever_links_and_dots_say() {
        let place = std::env::temp_dir().join(format!("objbus-policy-{}", std::process::id()));
        let root = place.join("root");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("a page.html"), "page").unwrap();
        fs::write(place.join("secret"), "secret").unwrap();
        symlink(place.join("secret"), root.join("out")).unwrap();
        symlink(root.join("a page.html"), root.join("in")).unwrap();
        symlink(&root, place.join("alias")).unwrap();
        let policy = Policy::new(&Allowed { hosts: Vec::new(), files: Some(place.join("alias")) }).unwrap();

        let url = |path: &str| format!("file://{}/{path}", place.canonicalize().unwrap().display());
        for path in ["root/a%20page.html", "root/in", "alias/in", "root/x/../in"] {
            assert!(policy.admit(&url(path)).is_ok(), "{path}");
        }
        for path in
            ["secret", "root/out", "root/../secret", "root/%2e%2e/secret", "root/..%2fsecret", "root2"]
        {
            assert!(refuses(&policy, &url(path)), "{path}");
        }
        assert!(refuses(&policy, "file://elsewhere/etc/passwd"));
        assert!(matches!(policy.admit(&url("root/none")), Err(SnapshotError::PageFailed { .. })));
        fs::remove_dir_all(&place).unwrap();
    }
}
