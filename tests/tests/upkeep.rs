//! What happens to stored items in the background: nothing is lost, doubled or hidden while it does.

use collector::decode::{self, Format};
use collector::validate::{Intake, Limits};
use firstfall_store::query::{Budget, Keep, ServiceQuestion};
use firstfall_store::{Admission, Answer, Options, Reader, RequestHash, Retention, Signal, Store, TraceId};
use harness::{corpus, wait_for};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Sends requests of sixty spans each, one after the other, and returns how many spans that were.
fn send(store: &Store, salt: u64, requests: usize, at: u64) -> u64 {
    let mut sent = 0;
    for (n, template) in corpus::traces(41, requests, 60).iter().enumerate() {
        let mut body = Vec::new();
        template.patch(salt + n as u64, at, &mut body);
        let hash = RequestHash(u128::from(salt + n as u64).to_le_bytes());
        let mut intake = Intake::new(Signal::Traces, Limits::default(), now(), body.len());
        decode::request(Format::Protobuf, Signal::Traces, &mut body, &mut intake).expect("valid");
        let (done, answered) = mpsc::channel();
        match store.admit(hash, |_| {}) {
            Ok(Admission::New(place)) => place.submit(intake.finish().0, now(), Answer::default(), move |r| done.send(r).expect("awaited")),
            _ => panic!("a new request is taken"),
        }
        answered.recv().expect("answered").expect("stored");
        sent += template.items as u64;
    }
    sent
}

/// Spans by the rollups, over all time.
fn counted(reader: &Reader) -> u64 {
    let all = ServiceQuestion { to: u64::MAX / 2, ..ServiceQuestion::default() };
    reader.services(&all, &Budget::default()).expect("read").iter().map(|s| s.items).sum()
}

fn files(directory: &Path) -> usize {
    let names = std::fs::read_dir(directory.join("traces")).expect("it is there").flatten();
    names.filter(|e| e.path().extension().is_some_and(|x| x == "db")).count()
}

#[test]
fn rollups_of_many_generations_are_added_up_while_they_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options { generation_rows: 50, upkeep_pause: Duration::from_millis(5), ..Options::default() };
    let store = Store::open(directory.path(), options).expect("it opens");
    let reader = store.reader();
    let at = now() / 60_000_000_000 * 60_000_000_000;
    // One asks all the time: never less than what was acknowledged when it asked, never more than what was sent when it had its answer.
    let (begun, acknowledged, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                let least = acknowledged.load(Ordering::Acquire);
                let counted = counted(&reader);
                let most = begun.load(Ordering::Acquire);
                assert!((least..=most).contains(&counted), "{counted} spans between {least} and {most}");
            }
        });
        let each: u64 = corpus::traces(41, 2, 60).iter().map(|t| t.items as u64).sum();
        for round in 0..120 {
            begun.fetch_add(each, Ordering::AcqRel);
            assert_eq!(send(&store, 1000 * round, 2, at), each);
            acknowledged.fetch_add(each, Ordering::AcqRel);
        }
        ended.store(true, Ordering::Release);
    });
    let sent = acknowledged.into_inner();
    // All in one minute, so that its deltas end as a few.
    let rollups = || {
        let path = std::fs::read_dir(directory.path().join("traces")).expect("it is there").flatten().map(|e| e.path());
        let path = path.into_iter().find(|p| p.extension().is_some_and(|x| x == "db")).expect("a partition");
        let connection = rusqlite::Connection::open(path).expect("it opens");
        connection
            .query_row("SELECT max(n) FROM (SELECT count(*) AS n FROM rollup GROUP BY level, minute)", [], |row| row.get::<_, i64>(0))
            .expect("read")
    };
    wait_for("the deltas of a minute to be added up", || {
        assert_eq!(counted(&reader), sent);
        (rollups() < 12).then_some(())
    });
    store.close();
    let store = Store::open(directory.path(), Options::default()).expect("it opens again");
    assert_eq!(counted(&store.reader()), sent, "after a restart");
}

#[test]
fn retention_drops_whole_partitions_and_keeps_their_rollups() {
    for (what, bytes, age) in [("bytes", 1, Duration::from_secs(86_400)), ("age", u64::MAX, Duration::ZERO)] {
        let directory = tempfile::tempdir().expect("a directory");
        let options = Options {
            generation_rows: 50,
            // Each generation gets a partition of its own.
            partition_bytes: 1,
            retention: Retention { bytes, age, ..Retention::default() },
            upkeep_pause: Duration::from_millis(5),
            ..Options::default()
        };
        let store = Store::open(directory.path(), options).expect("it opens");
        let reader = store.reader();
        let mut sent = 0;
        for round in 0..8 {
            sent += send(&store, 1000 * round, 2, now() - 3_600_000_000_000);
            assert_eq!(counted(&reader), sent, "by {what}, after round {round}");
        }
        // One file alone says little: on a busy machine there is also only one while the sealer lags.
        wait_for("all partitions but the newest to be dropped", || {
            let rows = reader.sql("SELECT count(*) FROM spans", 1, &Budget::default()).expect("read").rows;
            let few = rows[0][0].as_u64().is_some_and(|kept| kept < sent / 4);
            (few && files(directory.path()) == 1).then_some(())
        });
        assert_eq!(counted(&reader), sent, "rollups outlive their spans");
        store.close();
        let store = Store::open(directory.path(), Options { retention: Retention { bytes, ..Retention::default() }, ..Options::default() })
            .expect("it opens again");
        assert_eq!(counted(&store.reader()), sent, "after a restart");
    }
}

#[test]
fn a_part_of_the_past_is_what_all_of_it_says_of_that_part() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path(), Options { generation_rows: 500, ..Options::default() }).expect("it opens");
    send(&store, 7, 30, now() - 3_600_000_000_000);
    store.close();
    let store = Store::open(directory.path(), Options::default()).expect("it opens again");
    let past = store.reader().past();
    // What comes after is not in it.
    send(&store, 7000, 3, now() - 3_600_000_000_000);
    let keep = |kind: u8, trace: Option<TraceId>, _: u64| kind == 4 || trace.is_some_and(|trace| trace.0[15] % 4 == 0);
    let spans = |all: bool| {
        let keep: Option<&Keep<'_>> = if all { None } else { Some(&keep) };
        let mut spans = Vec::new();
        let read = past.read(Signal::Traces, 0, u64::MAX, &Budget::default(), keep, |_, batch| {
            for row in 0..batch.rows() {
                let lane = batch.lanes[batch.lane[row] as usize];
                let name = batch.strings.str(lane.name).to_owned();
                spans.push((
                    batch.trace_id(row),
                    batch.span[row],
                    batch.parent[row],
                    lane.kind,
                    name,
                    batch.time[row],
                    batch.duration[row],
                ));
            }
        });
        read.expect("it is whole");
        spans.sort();
        spans
    };
    let all = spans(true);
    assert_eq!(all.len(), past.rows(Signal::Traces, 0, u64::MAX));
    let wanted: Vec<_> = all.iter().filter(|(trace, _, _, kind, _, time, _)| keep(*kind, *trace, *time)).cloned().collect();
    assert!(wanted.len() * 10 > all.len() && wanted.len() * 10 < all.len() * 9, "{} of {}", wanted.len(), all.len());
    assert_eq!(spans(false), wanted);
}
