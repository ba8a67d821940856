//! postanalytics tests
