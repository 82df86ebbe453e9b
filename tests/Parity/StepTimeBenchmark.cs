using System.Diagnostics;
using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>
/// One training step of a 20M-parameter model on CPU, fp32, one thread: ours against the same model in plain libtorch operations with
/// autograd (fused attention as stock code uses it) and libtorch's AdamW formula per tensor. Best of several steps each, interleaved.
/// </summary>
[Collection<Alone>]
public sealed class StepTimeBenchmark(ITestOutputHelper output)
{
    private const int NumSteps = 5, BatchSize = 2, SeqLen = 256;
    private const double AllowedRatio = 2.0;

    private static readonly ModelConfig config = TestModels.Config with
    {
        NumLayers = 8, HiddenSize = 384, FfnHiddenSize = 1152, NumAttentionHeads = 6, NumQueryGroups = 2, KvChannels = 64, VocabSize = 8192,
        MaxPositionEmbeddings = SeqLen, QkLayerNorm = true,
    };

    [Fact, Trait("Category", "benchmark")]
    public void Step_20MParametersOnCpu_AtMostTwiceStockAutograd()
    {
        var batch = TestBatches.Random(new Random(1), config.VocabSize, [.. Enumerable.Repeat(SeqLen, BatchSize)]);
        using var ours = new OurStep(batch);
        using var stock = new StockStep(ours.Model, batch);
        var (oursBest, stockBest) = (StepTime.Slowest, StepTime.Slowest);
        for (var i = 0; i < NumSteps; i++)
        {
            stockBest = stockBest.Best(Measure(stock.ForwardBackward, stock.Update));
            oursBest = oursBest.Best(Measure(ours.ForwardBackward, ours.Update));
        }
        Assert.Equal(stock.FirstLoss, ours.FirstLoss, 1e-4 * stock.FirstLoss);

        var millions = ours.Model.Parameters.Sum(parameter => parameter.NumElements) / 1e6;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{millions:F1}M parameters, {batch.NumTokens} tokens, {get_num_threads()} thread"));
        output.WriteLine($"stock autograd: {stockBest}");
        output.WriteLine($"ours:           {oursBest}");
        var ratio = oursBest.Total / stockBest.Total;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"ratio {ratio:F2}, forward + backward {oursBest.Model / stockBest.Model:F2}"));
        Assert.True(ratio <= AllowedRatio, $"a step takes {ratio} times as long as stock autograd");
    }

    private static StepTime Measure(Action forwardBackward, Action update)
    {
        var start = Stopwatch.GetTimestamp();
        forwardBackward();
        var model = Stopwatch.GetElapsedTime(start);
        update();
        return new StepTime(model.TotalMilliseconds, Stopwatch.GetElapsedTime(start).TotalMilliseconds - model.TotalMilliseconds);
    }

    /// <summary>Milliseconds of one step.</summary>
    private readonly record struct StepTime(double Model, double Update)
    {
        public static StepTime Slowest => new(double.MaxValue / 4, double.MaxValue / 4);

        public double Total => Model + Update;

        public StepTime Best(StepTime other) => new(Math.Min(Model, other.Model), Math.Min(Update, other.Update));

        public override string ToString() =>
            string.Create(CultureInfo.InvariantCulture, $"{Total:F1} ms a step, forward + backward {Model:F1}, update {Update:F1}");
    }

    private sealed class OurStep : IDisposable
    {
        private readonly GradientBuffer gradients;
        private readonly MixedPrecisionOptimizer optimizer;
        private readonly ForwardContext context;
        private readonly Saved saved;

        public GptModel Model { get; }

        public float FirstLoss { get; private set; }

        public OurStep(MicroBatch batch)
        {
            Model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
            ModelInitializer.Initialize(Model.Parameters, config, seed: 3);
            var layout = FlatLayout.Create(Model.Parameters, ParallelState.SingleRank());
            gradients = layout.CreateGradientBuffer(CPU, 1);
            var options = new OptimizerOptions
            {
                Kind = OptimizerKind.Adam, WeightDecay = 0.1, ClipGrad = 0, AdamBeta1 = 0.9, AdamBeta2 = 0.95, AdamEps = 1e-8, SgdMomentum = 0,
                UseDistributedOptimizer = false,
            };
            optimizer = new MixedPrecisionOptimizer(layout, gradients, ParallelState.SingleRank(), options, lossScaler: null);
            context = new ForwardContext(batch, CPU, 0, isTraining: true, 1.0 / batch.NumTargetTokens, 1);
            saved = new Saved(context);
        }

        public void ForwardBackward()
        {
            using var scope = NewDisposeScope();
            var loss = Model.ForwardStage(null, saved).item<float>() * (float)context.LossFactor;
            if (FirstLoss == 0) FirstLoss = loss;
            Assert.Null(Model.BackwardInput(null, saved));
            Model.BackwardWeight(saved);
        }

        public void Update()
        {
            using var scope = NewDisposeScope();
            optimizer.ReduceGradients();
            optimizer.Step(1e-4);
            gradients.Zero();
        }

        public void Dispose()
        {
            saved.Dispose();
            context.Dispose();
            optimizer.Dispose();
            gradients.Dispose();
            Model.Dispose();
        }
    }

    /// <summary>The same model as a user of stock libtorch writes it.</summary>
    private sealed class StockStep : IDisposable
    {
        private readonly Tensor[] weights;
        private readonly Tensor[] moments;
        private readonly Tensor[] variances;
        private readonly Tensor tokens;
        private readonly Tensor labels;
        private readonly Tensor cos;
        private readonly Tensor sin;
        private int stepCount;

        public float FirstLoss { get; private set; }

        public StockStep(GptModel model, MicroBatch batch)
        {
            weights = [.. model.Parameters.Select(parameter => parameter.Data.clone().requires_grad_(true))];
            moments = [.. weights.Select(weight => zeros_like(weight).detach())];
            variances = [.. weights.Select(weight => zeros_like(weight).detach())];
            (tokens, labels) = (tensor(batch.TokenIds), tensor(batch.Labels));
            using var scope = NewDisposeScope();
            var (frequencies, _) = RotaryFrequencies.Compute(config.Rotary, config.KvChannels, SeqLen);
            var angles = arange(SeqLen, ScalarType.Float32).unsqueeze(1) * tensor(frequencies);
            cos = cat([angles, angles], 1).cos().DetachFromDisposeScope();
            sin = cat([angles, angles], 1).sin().DetachFromDisposeScope();
        }

        public void ForwardBackward()
        {
            using var scope = NewDisposeScope();
            var queue = new Queue<Tensor>(weights);
            var hidden = queue.Dequeue().index_select(0, tokens);
            for (var i = 0; i < config.NumLayers; i++)
            {
                hidden = hidden + Attention(Norm(hidden, queue.Dequeue()), queue);
                hidden = hidden + ReferenceTransformer.Mlp(Norm(hidden, queue.Dequeue()), queue.Dequeue(), queue.Dequeue());
            }
            var logits = nn.functional.linear(Norm(hidden, queue.Dequeue()), queue.Dequeue());
            var loss = nn.functional.cross_entropy(logits, labels, ignore_index: MicroBatch.IgnoreIndex);
            loss.backward();
            if (FirstLoss == 0) FirstLoss = loss.item<float>();
        }

        /// <summary>AdamW as libtorch's single-tensor loop computes it.</summary>
        public void Update()
        {
            using var scope = NewDisposeScope();
            using var noGradient = no_grad();
            stepCount++;
            var (correction1, correction2) = (1 - Math.Pow(0.9, stepCount), 1 - Math.Pow(0.95, stepCount));
            for (var i = 0; i < weights.Length; i++)
            {
                if (weights[i].grad is not { } gradient) continue;
                if (weights[i].dim() > 1) weights[i].mul_(1 - 1e-4 * 0.1);
                moments[i].lerp_(gradient, 0.1);
                variances[i].mul_(0.95).addcmul_(gradient, gradient, 0.05);
                using var denominator = variances[i].sqrt().div_(Math.Sqrt(correction2)).add_(1e-8);
                weights[i].addcdiv_(moments[i], denominator, -1e-4 / correction1);
                gradient.zero_();
            }
        }

        public void Dispose()
        {
            foreach (var tensor in (Tensor[])[.. weights, .. moments, .. variances, tokens, labels, cos, sin]) tensor.Dispose();
        }

        private static Tensor Norm(Tensor x, Tensor weight) => x * (x.pow(2).mean([-1], keepdim: true) + config.NormEpsilon).rsqrt() * weight;

        private Tensor Attention(Tensor x, Queue<Tensor> queue)
        {
            var (heads, groups, dim) = (config.NumAttentionHeads, config.NumQueryGroups, config.KvChannels);
            var parts = nn.functional.linear(x, queue.Dequeue()).view(BatchSize, SeqLen, heads + 2 * groups, dim).split([heads, groups, groups], 2);
            var query = Rotate(Norm(parts[0], queue.Dequeue()).transpose(1, 2));
            var key = Rotate(Norm(parts[1], queue.Dequeue()).transpose(1, 2)).repeat_interleave(heads / groups, 1);
            var value = parts[2].transpose(1, 2).repeat_interleave(heads / groups, 1);
            var attended = nn.functional.scaled_dot_product_attention(query, key, value, is_casual: true);
            return nn.functional.linear(attended.transpose(1, 2).reshape(-1, heads * dim), queue.Dequeue());
        }

        private Tensor Rotate(Tensor x)
        {
            var halves = x.chunk(2, -1);
            return x * cos + cat([-halves[1], halves[0]], -1) * sin;
        }
    }
}
