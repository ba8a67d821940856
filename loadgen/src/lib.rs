//! postanalytics loadgen
