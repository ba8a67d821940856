//! postanalytics benches
