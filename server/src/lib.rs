//! postanalytics server
