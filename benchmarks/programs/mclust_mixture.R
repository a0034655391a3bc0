# EM of a mixture in mclust, model VVV (full covariances), from given parameters.
suppressPackageStartupMessages(library(mclust))
arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[2]
sizes <- scan(file.path(folder, "sizes.txt"), quiet = TRUE)
N <- sizes[1]; D <- sizes[2]; K <- sizes[3]; short <- sizes[4]; long <- sizes[5]
numbers <- function(name, n) readBin(file.path(folder, paste0(name, ".bin")), "double", n)
X <- matrix(numbers("X", N * D), N, D, byrow = TRUE)
means <- matrix(numbers("means", K * D), D, K)
sigma <- array(numbers("covariances", K * D * D), c(D, D, K))
start <- list(pro = numbers("weights", K), mean = means, variance = list(
  modelName = "VVV", d = D, G = K, sigma = sigma,
  cholsigma = array(apply(sigma, 3, chol), c(D, D, K))))
fit <- function(n) em(data = X, modelName = "VVV", parameters = start, control = emControl(eps = 0, tol = c(0, 0), itmax = c(n, n)), warn = FALSE)
answer <- function(...) { cat(sprintf(...), "\n", sep = ""); flush(stdout()) }
found <- fit(long)
answer('{"ready": "mclust %s, R %s", "prepared": 0.0, "log_likelihood": %.17g}', packageVersion("mclust"), getRversion(), found$loglik)
now <- function() as.numeric(Sys.time())
seconds <- function(n) { begin <- now(); fit(n); now() - begin }
input <- file("stdin", "r")
while (length(readLines(input, 1)) > 0) {
  few <- seconds(short); many <- seconds(long)
  answer('{"seconds": %.17g}', (many - few) / (long - short))
}
