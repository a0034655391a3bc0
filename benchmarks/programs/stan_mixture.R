# A marginalised mixture in Stan (rstan): log posterior and gradient, or NUTS.
suppressPackageStartupMessages(library(rstan))
# Debian's packages of the headers are empty: they stand where the compiler looks anyway.
if (rstan_options("boost_lib") == "") rstan_options(boost_lib = "/usr/include")
if (rstan_options("eigen_lib") == "") rstan_options(eigen_lib = "/usr/include/eigen3")
arguments <- commandArgs(trailingOnly = TRUE)
task <- arguments[1]; folder <- arguments[2]; threads <- as.integer(arguments[3]); kept <- arguments[4]
sizes <- scan(file.path(folder, "sizes.txt"), quiet = TRUE)
N <- sizes[1]; D <- sizes[2]; K <- sizes[3]; chains <- sizes[4]; tune <- sizes[5]; draws <- sizes[6]
numbers <- function(name, n) readBin(file.path(folder, paste0(name, ".bin")), "double", n)
X <- matrix(numbers("X", N * D), N, D, byrow = TRUE)
weights <- numbers("weights", K)
means <- matrix(numbers("means", K * D), K, D, byrow = TRUE)
sigma <- array(numbers("covariances", K * D * D), c(D, D, K))
code <- "
data { int N; int D; int K; vector[D] x[N]; vector[D] center; vector[D] deviation; }
parameters {
  simplex[K] weights;
  vector[D] means[K];
  vector<lower=0>[D] scales[K];
  cholesky_factor_corr[D] correlations[K];
}
model {
  matrix[D, D] factors[K];
  vector[K] log_weights = log(weights);
  weights ~ dirichlet(rep_vector(1, K));
  for (k in 1:K) {
    means[k] ~ normal(center, 2.5 * deviation);
    scales[k] ~ normal(0, deviation);
    correlations[k] ~ lkj_corr_cholesky(2);
    factors[k] = diag_pre_multiply(scales[k], correlations[k]);
  }
  for (n in 1:N) {
    vector[K] terms;
    for (k in 1:K) terms[k] = log_weights[k] + multi_normal_cholesky_lpdf(x[n] | means[k], factors[k]);
    target += log_sum_exp(terms);
  }
}
"
data <- list(N = N, D = D, K = K, x = X, center = colMeans(X), deviation = apply(X, 2, sd) * sqrt((N - 1) / N))
factor <- function(k) t(chol(sigma[, , k]))
scales <- t(sapply(1:K, function(k) sqrt(diag(as.matrix(sigma[, , k])))))
dim(scales) <- c(K, D)
correlations <- array(0, c(K, D, D))
for (k in 1:K) correlations[k, , ] <- factor(k) / scales[k, ]
start <- list(weights = weights, means = means, scales = scales, correlations = correlations)
answer <- function(...) { cat(sprintf(...), "\n", sep = ""); flush(stdout()) }
now <- function() as.numeric(Sys.time())
silent <- function(call) { sink("/dev/null"); on.exit(sink()); suppressWarnings(suppressMessages(call)) }
# Compiled once for all sizes: rstan keeps the model beside its file.
program <- file.path(kept, "mixture.stan")
if (!file.exists(program)) writeLines(code, program)
prepared <- system.time(model <- silent(stan_model(program, auto_write = TRUE)))[["elapsed"]]
if (task == "gradient") {
  fit <- silent(sampling(model, data = data, chains = 0))
  theta <- unconstrain_pars(fit, start)
  grad_log_prob(fit, theta)
  measure <- function() {
    calls <- 0; begin <- now(); total <- 0
    while (total < 0.2 || calls < 3) {
      grad_log_prob(fit, theta)
      calls <- calls + 1; total <- now() - begin
    }
    answer('{"seconds": %.17g}', total / calls)
  }
} else {
  seed <- 0
  measure <- function() {
    seed <<- seed + 1
    seconds <- system.time(fit <- silent(sampling(model, data = data, chains = chains, cores = threads, warmup = tune,
      iter = tune + draws, seed = seed, init = rep(list(start), chains), refresh = 0)))[["elapsed"]]
    # (draws, chains, values), the last index of each parameter slowest; written chain by chain, draw by draw
    found <- as.array(fit)
    # The name of parameter "a" at some indices; rstan names them a[1,2].
    pick <- function(name, ...) found[, , sprintf("%s[%s]", name, paste(c(...), collapse = ","))]
    w <- array(0, c(K, draws, chains)); m <- array(0, c(D, K, draws, chains)); s <- array(0, c(D, D, K, draws, chains))
    for (k in 1:K) {
      w[k, , ] <- pick("weights", k)
      for (i in 1:D) {
        m[i, k, , ] <- pick("means", k, i)
        for (j in 1:D) for (r in 1:D)
          s[i, j, k, , ] <- s[i, j, k, , ] + pick("scales", k, i) * pick("scales", k, j) *
            pick("correlations", k, i, r) * pick("correlations", k, j, r)
      }
    }
    writeBin(as.vector(w), file.path(folder, "draws_weights.bin"))
    writeBin(as.vector(m), file.path(folder, "draws_means.bin"))
    writeBin(as.vector(s), file.path(folder, "draws_covariances.bin"))
    statistics <- get_sampler_params(fit, inc_warmup = FALSE)
    answer('{"seconds": %.17g, "steps": %.0f, "divergences": %.0f}', seconds,
      sum(sapply(statistics, function(s) sum(s[, "n_leapfrog__"]))), sum(sapply(statistics, function(s) sum(s[, "divergent__"]))))
  }
}
answer('{"ready": "rstan %s, R %s", "prepared": %.17g, "log_likelihood": null}', packageVersion("rstan"), getRversion(), prepared)
input <- file("stdin", "r")
while (length(readLines(input, 1)) > 0) measure()
