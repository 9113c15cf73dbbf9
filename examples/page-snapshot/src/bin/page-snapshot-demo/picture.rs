//! Pictures that need no file and no network: parts of the Mandelbrot set, as BMP files.

/// How often a point is looked at before it counts as one of the set.
const ROUNDS: u32 = 300;
/// Beyond it a point has left for good. Far out, so that its colour is smooth.
const FAR: f64 = 64.0;
const HEADER: u32 = 54;

/// What part of the plane is shown: its middle and its width.
pub struct View {
    pub x: f64,
    pub y: f64,
    pub width: f64,
}

/// A BMP file of `width` x `height` pixels; `width` is a multiple of four, so that rows need no padding.
pub fn bmp(width: u32, height: u32, view: &View) -> Vec<u8> {
    assert!(width.is_multiple_of(4), "a row of {width} pixels would need padding");
    let size = width * height * 3;
    let mut file = Vec::with_capacity((HEADER + size) as usize);
    file.extend(b"BM");
    // The file's size, nothing, where the pixels are; the header's size, the picture's, planes and bits, the rest by default.
    for number in [HEADER + size, 0, HEADER, 40, width, height, 24 << 16 | 1, 0, size, 2835, 2835, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    let step = view.width / f64::from(width);
    let at = |pixel: u32, of: u32| (f64::from(pixel) - f64::from(of) / 2.0) * step;
    for row in 0..height {
        for column in 0..width {
            file.extend(colour(view.x + at(column, width), view.y + at(row, height)));
        }
    }
    file
}

/// Blue, green and red of a point.
fn colour(x: f64, y: f64) -> [u8; 3] {
    let (mut a, mut b) = (0.0, 0.0);
    for round in 0..ROUNDS {
        (a, b) = (a * a - b * b + x, 2.0 * a * b + y);
        let distance: f64 = a * a + b * b;
        if distance > FAR {
            let smooth = f64::from(round) - (distance.ln() / FAR.ln()).log2();
            let wave = |phase: f64| (127.5 + 127.5 * (smooth * 0.12 + phase).sin()) as u8;
            return [wave(1.4), wave(0.5), wave(-0.6)];
        }
    }
    [40, 20, 16]
}
