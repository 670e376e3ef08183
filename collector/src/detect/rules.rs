//! The numbers that decide: how sure, how much and how long. Each is chosen by the reason beside it; how far the answers depend on the
//! choice is measured by `judge FOLDER sweep` on recorded failures (`docs/detection.md`, "How much hangs on the numbers").

/// Windows are ten seconds of event time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Below so many deviations a change may be chance: one in a thousand subjects, and thousands are looked at.
    pub sure: f64,
    /// The same by ranks, which a handful of windows can just reach.
    pub sure_by_rank: f64,
    /// A deviation of times is never taken for smaller than this part of their level.
    pub level_share: f64,
    /// A callee explains its caller when it does at least this part of the harm.
    pub explains: f64,
    /// A candidate opens an incident only beyond so many deviations: thousands of subjects are looked at each ten seconds, and nobody wants to
    /// be woken once a week by chance.
    pub open_score: f64,
    /// … and when it harms at least this part of its own requests,
    pub open_share: f64,
    /// … or this part, by time of its own, where its processor has become busy with it: two witnesses of different kinds are not both mistaken,
    pub open_share_busy: f64,
    /// … and at least so many requests of the stretch,
    pub harmed_min: f64,
    /// … in so many windows in a row.
    pub steps_to_open: u32,
    /// It also opens one when it stands longer, by a window, beyond so many deviations: what lasts need not be as far off.
    pub stand_score: f64,
    /// Windows in a row in which a change of shape, which is what is left where no failure is told, must stand to open one.
    pub shape_steps: u32,
    /// Before there is a baseline, what is slow opens one beyond so many deviations. One is a tenth of the level at least: more than three times as long,
    pub early_score: f64,
    /// … when so many windows have passed (two minutes), and it was seen as often.
    pub early_baseline_min: usize,
    /// With fewer deviations a node is no part of an incident.
    pub sick_score: f64,
    /// By how much of the requests a shape must change to open one.
    pub shape_change: f64,
    /// Windows before a change of shape is believed (eight minutes): what requests reach depends on who comes by, and that changes by the minute.
    pub shape_baseline_min: usize,
    /// Windows of data before a baseline is one (five minutes).
    pub baseline_min: usize,
    /// Points of a metric before they are a baseline: with three, a median of deviations says nothing.
    pub points_baseline_min: u64,
    /// A candidate whose onset lies so many windows after an open incident's is another one (two minutes).
    pub apart: u32,
    /// Windows in a row without symptoms of its origin before an incident closes (a minute and a half), since failures flap.
    pub quiet_to_close: u32,
    /// The same where metrics tell of it (two minutes).
    pub quiet_to_close_by_points: u32,
    /// For so many windows after its onset an incident is ranked anew (three minutes); what fails later is judged by itself.
    pub grows: u32,
    /// The same origin again within so many windows (five minutes) is the same incident.
    pub reopens: u32,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            sure: 3.0,
            sure_by_rank: 2.5,
            level_share: 0.1,
            explains: 0.3,
            open_score: 12.0,
            open_share: 0.1,
            open_share_busy: 0.02,
            harmed_min: 3.0,
            steps_to_open: 2,
            stand_score: 8.0,
            shape_steps: 3,
            early_score: 24.0,
            early_baseline_min: 12,
            sick_score: 6.0,
            shape_change: 0.5,
            shape_baseline_min: 50,
            baseline_min: 30,
            points_baseline_min: 12,
            apart: 12,
            quiet_to_close: 9,
            quiet_to_close_by_points: 12,
            grows: 18,
            reopens: 30,
        }
    }
}
