//! How busy CPUs were between two looks.
//!
//! Owns the memory of the last look and the smoothing. Never reads a clock or a file.

/// Clocks that only go forward, both in the same unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTimes {
    /// Time in which something was done.
    pub busy: f64,
    /// Time in which something could have been done.
    pub available: f64,
}

/// The share of the CPU time that is used, smoothed.
#[derive(Clone, Debug, Default)]
pub struct CpuMeter {
    last: Option<CpuTimes>,
    smoothed: f64,
}

/// How much the latest look counts: as in Envoy, so that thresholds mean the same.
const WEIGHT: f64 = 0.05;

impl CpuMeter {
    /// Takes the clocks as they are now. Returns the smoothed share, within 0..=1; 0 at first. Clocks that have not moved
    /// since the last look, for it was too short ago, tell nothing new.
    ///
    /// # Errors
    /// When there are no clocks, or they went backward.
    pub fn update(&mut self, now: CpuTimes) -> Result<f64, &'static str> {
        if now.available <= 0.0 {
            return Err("there is no CPU time");
        }
        let last = self.last.unwrap_or(now);
        let (busy, available) = (now.busy - last.busy, now.available - last.available);
        if busy < 0.0 || available < 0.0 {
            self.last = Some(now);
            return Err("the clocks of CPU time went backward");
        }
        if self.last.is_none() || available > 0.0 {
            self.last = Some(now);
        }
        if available > 0.0 {
            let share = (busy / available).min(1.0);
            self.smoothed = share * WEIGHT + self.smoothed * (1.0 - WEIGHT);
        }
        Ok(self.smoothed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_follows_the_load_slowly() {
        let mut meter = CpuMeter::default();
        assert_eq!(meter.update(CpuTimes { busy: 50.0, available: 100.0 }), Ok(0.0));
        assert_eq!(meter.update(CpuTimes { busy: 60.0, available: 110.0 }), Ok(0.05));
        let mut now = CpuTimes { busy: 60.0, available: 110.0 };
        let mut share = 0.0;
        for _ in 0..100 {
            now = CpuTimes { busy: now.busy + 20.0, available: now.available + 10.0 };
            share = meter.update(now).unwrap();
        }
        assert!((0.99..=1.0).contains(&share), "{share}");
        assert_eq!(meter.update(now), Ok(share));
        assert!(meter.update(CpuTimes { busy: 0.0, available: 0.0 }).is_err());
        assert!(meter.update(CpuTimes { busy: 0.0, available: now.available + 10.0 }).is_err());
        assert!(meter.update(CpuTimes { busy: 0.0, available: now.available + 20.0 }).unwrap() < share);
    }
}
