//! The pages whose pictures are taken.

use std::net::SocketAddr;

use page_snapshot::Shot;

use crate::picture::View;

/// A page, and what picture is taken of it.
pub struct Page {
    pub name: &'static str,
    pub html: &'static str,
    width: u32,
    height: u32,
    full_page: bool,
    quality: u8,
}

pub const PAGES: [Page; 3] = [
    Page {
        name: "tall",
        html: include_str!("pages/tall.html"),
        width: 1280,
        height: 800,
        full_page: true,
        quality: 80,
    },
    Page {
        name: "small",
        html: include_str!("pages/small.html"),
        width: 480,
        height: 320,
        full_page: false,
        quality: 80,
    },
    Page {
        name: "poster",
        html: include_str!("pages/poster.html"),
        width: 2400,
        height: 1600,
        full_page: false,
        quality: 95,
    },
];

/// The pictures in the pages: parts of the Mandelbrot set, each a path, its size (a multiple of four wide) and where it is.
pub const PICTURES: [(&str, u32, u32, View); 4] = [
    ("/whole.bmp", 1120, 640, View { x: -0.75, y: 0.0, width: 4.2 }),
    ("/valley.bmp", 548, 400, View { x: -0.7453, y: 0.1127, width: 0.0065 }),
    ("/spiral.bmp", 548, 400, View { x: -0.761574, y: -0.0847596, width: 0.0012 }),
    ("/poster.bmp", 2400, 1600, View { x: -0.7436, y: 0.1318, width: 0.0042 }),
];

impl Page {
    pub fn url(&self, site: SocketAddr) -> String {
        format!("http://{site}/{}", self.name)
    }

    /// What asks the web server for its picture.
    pub fn target(&self, site: SocketAddr) -> String {
        let Page { width, height, full_page, quality, .. } = self;
        let url = self.url(site);
        format!("/?url={url}&width={width}&height={height}&full_page={full_page}&quality={quality}")
    }

    /// The same for who asks over the bus.
    pub fn shot(&self) -> Shot {
        let Page { width, height, full_page, quality, .. } = *self;
        Shot { width, height, full_page, quality, ..Shot::default() }
    }
}
