use collector::decode::{self, Format};
use collector::detect::Observed;
use collector::validate::{Intake, Limits};
use firstfall_store::Signal;
use harness::corpus;
fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let t = corpus::traces(1, 192, 512);
    let items: usize = t.iter().map(|t| t.items).sum();
    let mut batches = Vec::new();
    for (n, t) in t.iter().enumerate() {
        let mut body = Vec::new();
        t.patch(n as u64 + 1, now, &mut body);
        let mut intake = Intake::new(Signal::Traces, Limits::default(), now, body.len());
        decode::request(Format::Protobuf, Signal::Traces, &mut body, &mut intake).unwrap();
        batches.push(intake.finish().0);
    }
    let mut best = [f64::MAX; 2];
    for _ in 0..std::env::args().nth(1).map_or(40, |n| n.parse().unwrap()) {
        let cpu = || {
            let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            s.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        let mut observed = Observed::default();
        let a = cpu();
        for b in &batches {
            observed.add(b);
        }
        let b = cpu();
        observed.settle(u64::MAX);
        let c = cpu();
        best[0] = best[0].min((b - a) / items as f64);
        best[1] = best[1].min((c - b) / items as f64);
    }
    println!("add {:.0} settle {:.0} ns", best[0], best[1]);
}
