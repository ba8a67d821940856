//! postanalytics client
