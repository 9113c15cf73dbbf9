//! The site that the demo shows to the application, on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::Html;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::page::{PAGES, PICTURES};
use crate::picture::bmp;

/// A site that is there as long as the demo's runtime.
pub struct Site {
    pub addr: SocketAddr,
}

impl Site {
    pub async fn serve() -> Result<Site, String> {
        let failed = |error: std::io::Error| format!("cannot serve pages on loopback: {error}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let painting = PICTURES.map(|(path, width, height, view)| {
            (path, tokio::task::spawn_blocking(move || Bytes::from(bmp(width, height, &view))))
        });
        let mut router = Router::new();
        for (path, picture) in painting {
            let picture = picture.await.map_err(|panic| panic.to_string())?;
            router = router.route(path, get(|| async { ([(CONTENT_TYPE, "image/bmp")], picture) }));
        }
        for page in &PAGES {
            router = router.route(&format!("/{}", page.name), get(|| async { Html(page.html) }));
        }
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Site { addr })
    }
}
