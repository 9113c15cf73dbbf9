use objbus::Bus;
struct Math;
#[objbus::object]
impl Math {
    pub fn pow(&self, x: f64, y: f64) -> f64 {
        x.powf(y)
    }
    pub fn nop(&self) {}
}
fn main() {
    let bus = Bus::in_memory();
    let p = bus.publish("math", Math).unwrap();
    let math: MathProxy = bus.proxy("math").wait().unwrap();
    let ow = std::env::args().nth(1).is_some();
    for r in 0..200000 {
        if ow {
            for _ in 0..64 {
                math.nop().send().unwrap();
            }
        }
        let calls: Vec<_> = (0..64).map(|i| math.pow(2.0, f64::from(i)).started()).collect();
        for (i, c) in calls.into_iter().enumerate() {
            if let Err(e) = c.wait() {
                println!("round {r} call {i}: {e:?} violations {}", p.violations());
                return;
            }
        }
    }
    println!("fine");
}
