using System.Globalization;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>One comparison with a golden folder.</summary>
/// <param name="Name">What was compared.</param>
/// <param name="Difference">Largest deviation, in the measure that <paramref name="Measure"/> names.</param>
/// <param name="Tolerance">Largest allowed deviation; infinite where the precision of the run allows no judgement.</param>
/// <param name="Measure">How the deviation is measured.</param>
/// <param name="Worst">Where it is largest.</param>
public sealed record GoldenCheck(string Name, double Difference, double Tolerance, string Measure, string Worst)
{
    /// <summary>False for NaN too.</summary>
    public bool IsPassed => Difference <= Tolerance;
}

/// <summary>
/// Computes what a golden folder holds with our own model and trainer and compares: logits, loss, gradients, a 20-step trajectory, final
/// weights, greedy continuation, and for models with experts a trajectory with the balance loss. Micro-batches are not padded. One object
/// per rank: all ranks make the same comparisons with the same values.
/// </summary>
public sealed class GoldenVerifier : IDisposable
{
    private readonly TrainingConfig config;
    private readonly ModelConfig modelConfig;
    private readonly GoldenFile golden;
    private readonly ModelChunks model;
    private readonly Trainer trainer;
    private readonly ParallelState parallel;
    private readonly Device device;
    private readonly List<GoldenCheck> checks = [];
    private readonly SortedDictionary<string, Tensor> dump = new(StringComparer.Ordinal);

    /// <param name="config">What <see cref="Resolve"/> returned.</param>
    /// <param name="parallel">This rank's groups; they belong to the caller.</param>
    public GoldenVerifier(TrainingConfig config, ParallelState parallel, Device device)
    {
        (this.config, this.parallel, this.device) = (config, parallel, device);
        golden = GoldenFile.Open(config.Golden ?? throw new InvalidOperationException("The configuration was not resolved."));
        modelConfig = ModelConfigOverrides.Apply(HfConfigReader.ReadFolder(golden.Folder).Model, config);
        model = LoadModel(config);
        trainer = new Trainer(model, parallel, device, RunSettings.Trainer(config));
    }

    /// <summary>The configuration with the hyperparameters of the golden folder, checked.</summary>
    /// <param name="config">Golden folder, layout, micro-batch size, dtype, recompute.</param>
    /// <exception cref="ConfigException">The folder or the layout cannot be used.</exception>
    public static TrainingConfig Resolve(TrainingConfig config, int worldSize)
    {
        using var golden = GoldenFile.Open(config.Golden ?? throw new ConfigException("CFG008", "--golden is missing; give the folder that holds golden.json."));
        var resolved = OptionCatalog.With(config with { TorchDtype = config.TorchDtype ?? "float32" }, golden.Hyperparameters
            .Where(pair => OptionCatalog.Find(pair.Key, trainingVerb: true) is not null)
            .ToDictionary(pair => pair.Key, pair => Convert(pair.Key, pair.Value)));
        resolved = resolved with
        {
            MoeRouterLoadBalancingType = "aux_loss",
            MoeAuxLossCoeff = 0,
            MoeZLossCoeff = null,
            Model = golden.Folder,
            GlobalBatchSize = (int)golden.ReadIds("steps.input_ids").Shape[1],
        };
        var modelConfig = ModelConfigOverrides.Apply(HfConfigReader.ReadFolder(golden.Folder).Model, resolved);
        ConfigValidator.ThrowIfInvalid(resolved, modelConfig, worldSize);
        return resolved;
    }

    /// <summary>Runs all comparisons.</summary>
    public IReadOnlyList<GoldenCheck> Run()
    {
        using var scope = NewDisposeScope();
        CompareForward();
        CompareGradients();
        CompareGreedy();
        CompareTrajectory(trainer, config.MicroBatchSize, golden.Trajectory, "trajectory");
        CompareFinalWeights();
        CompareTrajectoryWithAuxLoss();
        return checks;
    }

    /// <summary>Writes what was computed under the names of <c>golden.safetensors</c>, plus the trajectory.</summary>
    public void WriteDump(string path)
    {
        var specs = dump.Select(pair => new SafetensorsSpec(pair.Key, TensorBytes.ToSafetensors(pair.Value.dtype), pair.Value.shape)).ToArray();
        using var writer = new SafetensorsWriter(path, specs, SafetensorsWriter.PyTorchFormat);
        foreach (var tensor in dump.Values) writer.Write(tensor);
        writer.Finish();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var tensor in dump.Values) tensor.Dispose();
        trainer.Dispose();
        model.Dispose();
        golden.Dispose();
    }

    private void CompareForward()
    {
        using var scope = NewDisposeScope();
        var expected = golden.Read("logits");
        var row = WholeBatch().MicroBatches[0];
        using var real = new RealTokens(row, TokenShare.Whole(row.NumTokens), row.NumTokens, device);
        var logits = real.Select(PipelineLogits.Of(model, row, parallel, device)).to_type(float32).cpu().view(expected.shape);
        Keep("logits", logits);
        Add("logits", (logits - expected).abs().max().item<float>() / expected.abs().max().item<float>(), 2e-4, "max |Δ| / max |logits|", "");

        var (lossSum, tokenCount) = trainer.Evaluate(FirstBatch());
        var loss = GlobalLoss(lossSum, tokenCount);
        Keep("loss", tensor((float)loss));
        Add("loss", Relative(loss, golden.Read("loss").item<float>()), 1e-5, "relative", "");
    }

    private void CompareGradients()
    {
        using var scope = NewDisposeScope();
        trainer.AccumulateGradients(FirstBatch());
        trainer.Optimizer.ReduceGradients();
        trainer.Optimizer.GatherGradients();
        CompareTensors("grad.", parameter => parameter.MainGrad, 1e-4, "gradients");
    }

    private void CompareTrajectory(Trainer trainer, int microBatchSize, IReadOnlyList<GoldenStep> expected, string name)
    {
        var (ids, shape) = golden.ReadIds("steps.input_ids");
        var (labels, _) = golden.ReadIds("steps.labels");
        var source = ArrayBatchSource.Create(ids, labels, (int)shape[1], (int)shape[2], Unpadded(microBatchSize));
        var schedule = RunSettings.LearningRate(config, expected.Count);
        var (loss, norm, balance) = (new Series(), new Series(), new Series());
        for (var step = 0; step < expected.Count; step++)
        {
            parallel.IsWarmingUp = step < ParallelState.WarmupSteps;
            var metrics = trainer.TrainStep(source.Get(step), schedule.At(step + 1));
            loss.Add(GlobalLoss(metrics.LossSum, metrics.TokenCount), expected[step].LmLoss);
            norm.Add(metrics.Optimizer.GradNorm, expected[step].GradNorm);
            if (expected[step].LoadBalancingLoss is { } sum) balance.Add((metrics.LoadBalancingLoss ?? double.NaN) * NumMoeLayers, sum);
        }
        var label = name == "trajectory" ? name : "aux trajectory";
        AddSeries(name, "lm_loss", loss, 1e-4, $"{label} loss");
        AddSeries(name, "grad_norm", norm, 1e-3, $"{label} grad norm");
        if (balance.Values.Count > 0) AddSeries(name, "load_balancing_loss", balance, 1e-4, $"{label} balance loss");
    }

    // The coefficient weighs a loss over the tokens of one micro-batch, so this run takes the global batch as one.
    private void CompareTrajectoryWithAuxLoss()
    {
        if (golden.TrajectoryWithAuxLoss is not { } expected || parallel.DataParallel.Size > 1 || model.Chunks.Count > 1) return;
        var withLoss = config with { MoeAuxLossCoeff = golden.AuxLossCoeff };
        using var freshModel = LoadModel(withLoss);
        using var freshTrainer = new Trainer(freshModel, parallel, device, RunSettings.Trainer(withLoss));
        CompareTrajectory(freshTrainer, (int)golden.ReadIds("steps.input_ids").Shape[1], expected, "trajectory_with_aux_loss");
    }

    private int NumMoeLayers => Enumerable.Range(0, modelConfig.NumLayers).Count(modelConfig.IsMoeLayer);

    private ModelChunks LoadModel(TrainingConfig settings)
    {
        var layouts = RunSettings.Partition(settings, modelConfig).LayoutsOf(parallel.PipelineParallel.Rank);
        var loaded = new ModelChunks(modelConfig, RunSettings.Model(settings, device), parallel, layouts);
        ModelState.LoadWeights(loaded, golden.Folder, allowRandom: false, settings.Seed);
        return loaded;
    }

    private void CompareFinalWeights()
    {
        using var scope = NewDisposeScope();
        CompareTensors("final.", parameter => parameter.Data, 1e-3, "final weights");
    }

    private void CompareGreedy()
    {
        using var scope = NewDisposeScope();
        var (expected, _) = golden.ReadIds("greedy.ids");
        var prompt = 16;
        var ids = expected.Take(prompt).ToList();
        while (ids.Count < expected.Length) ids.Add(NextToken([.. ids]));
        Keep("greedy.ids", tensor(ids.ToArray()).view(1, ids.Count));
        var different = ids.Zip(expected).Count(pair => pair.First != pair.Second);
        Add("greedy ids", different, 0, "tokens that differ", "");
    }

    private long NextToken(long[] ids)
    {
        using var scope = NewDisposeScope();
        // Sequence and context parallelism split the row evenly; causal attention never looks at what follows.
        var multiple = PadToMultiple * (parallel.SequenceParallel ? parallel.TensorParallel.Size : 1);
        var length = (ids.Length + multiple - 1) / multiple * multiple;
        long[] padded = [.. ids, .. new long[length - ids.Length]];
        var row = new MicroBatch
        {
            TokenIds = padded,
            Labels = [.. Enumerable.Repeat((long)MicroBatch.IgnoreIndex, length)],
            Positions = [.. Enumerable.Range(0, length)],
            CuSeqLens = [0, length],
            GlobalTokenIndex = [.. Enumerable.Range(0, length)],
            NumTargetTokens = 0,
        };
        return PipelineLogits.Of(model, row, parallel, device)[ids.Length - 1].argmax().item<long>();
    }

    /// <summary>Mean loss over the targets of all ranks, the same on each.</summary>
    private double GlobalLoss(double lossSum, double tokenCount)
    {
        var sums = HostValues.Sum(parallel.World, device, lossSum, tokenCount);
        return sums[0] / sums[1];
    }

    /// <summary>The two rows of the golden batch as one micro-batch, the same on every rank.</summary>
    private GlobalBatch WholeBatch()
    {
        var (ids, shape) = golden.ReadIds("input_ids");
        var (labels, _) = golden.ReadIds("labels");
        var rows = (int)shape[0];
        return ArrayBatchSource.Create(ids, labels, rows, (int)shape[1], BatchLayout.SingleRankUnpadded(rows) with { PadSampleToMultiple = PadToMultiple }).Get(0);
    }

    /// <summary>
    /// This rank's share of the golden batch. It has two rows only: ranks and pipeline places beyond them get rows without targets, which
    /// add nothing to a loss per token.
    /// </summary>
    private GlobalBatch FirstBatch()
    {
        var whole = WholeBatch();
        var numMicroBatches = model.Chunks.Count > 1 ? parallel.PipelineParallel.Size : 1;
        if (parallel.DataParallel.Size == 1 && numMicroBatches == 1) return whole;
        var empty = Masked(whole.MicroBatches[0]);
        var filled = Enumerable.Repeat(empty, numMicroBatches).ToArray();
        if (parallel.DataParallel.Rank == 0) filled[0] = whole.MicroBatches[0];
        return whole with { MicroBatches = filled, NumMicroBatchesGlobal = numMicroBatches * parallel.DataParallel.Size };
    }

    private static MicroBatch Masked(MicroBatch row) => row with
    {
        Labels = [.. row.Labels.Select(_ => (long)MicroBatch.IgnoreIndex)],
        LossWeights = null,
        NumTargetTokens = 0,
    };

    private BatchLayout Unpadded(int microBatchSize) => BatchLayout.SingleRankUnpadded(microBatchSize) with
    {
        DataParallelRank = parallel.DataParallel.Rank,
        DataParallelSize = parallel.DataParallel.Size,
        PadSampleToMultiple = PadToMultiple,
    };

    private int PadToMultiple => RowLayout.SampleMultiple(parallel.ContextParallel.Size);

    /// <summary>Compares all tensors of the golden file under a prefix by relative L2 norm.</summary>
    private void CompareTensors(string prefix, Func<Parameter, Tensor> select, double tolerance, string name)
    {
        var worst = (Difference: 0.0, Where: "");
        var catalog = HfTensorCatalog.Of(model.Config).ToDictionary(tensor => tensor.Name, tensor => tensor.Shape, StringComparer.Ordinal);
        foreach (var tensorName in golden.Names(prefix))
        {
            using var scope = NewDisposeScope();
            var expected = golden.Read(prefix + tensorName);
            if (!catalog.TryGetValue(tensorName, out var shape)) throw new ConfigException("GOLD001", $"{golden.Folder}: {prefix}{tensorName} is no tensor of the model.");
            var actual = Replicas.Gather(tensorName, shape, model.Parameters, select, parallel, device).cpu();
            Keep(prefix + tensorName, actual);
            var difference = (actual - expected).norm().item<float>() / Math.Max(expected.norm().item<float>(), 1e-30);
            if (!(difference <= worst.Difference)) worst = (difference, tensorName);
        }
        Add(name, worst.Difference, tolerance, "relative L2", worst.Where);
    }

    private void Keep(string name, Tensor value) => dump[name] = value.cpu().clone().DetachFromDisposeScope();

    private void AddSeries(string trajectory, string column, Series series, double tolerance, string name)
    {
        Keep($"{trajectory}.{column}", tensor(series.Values.ToArray()));
        Add(name, series.Worst, tolerance, "relative", series.Where);
    }

    // The golden values are fp32. A 16-bit run is judged by its losses alone (2 %); its other differences are shown.
    private void Add(string name, double difference, double tolerance, string measure, string worst)
    {
        var isExact = config.TorchDtype == "float32";
        var allowed = isExact ? tolerance : name.EndsWith("loss", StringComparison.Ordinal) ? 0.02 : double.PositiveInfinity;
        checks.Add(new GoldenCheck(name, difference, allowed, measure, worst));
    }

    private static double Relative(double actual, double expected) => Math.Abs(actual - expected) / Math.Max(Math.Abs(expected), 1e-30);

    private static object? Convert(string name, System.Text.Json.JsonElement value)
    {
        var option = OptionCatalog.Get(name);
        return ConfigJson.TryConvert(option, value, out var converted, out var problem) ? converted : throw new ConfigException([problem]);
    }

    /// <summary>One quantity over the steps, and where it is farthest from what is expected.</summary>
    private sealed class Series
    {
        public List<float> Values { get; } = [];

        public double Worst { get; private set; }

        public string Where { get; private set; } = "";

        public void Add(double actual, double expected)
        {
            Values.Add((float)actual);
            var difference = Relative(actual, expected);
            if (double.IsNaN(Worst) || difference <= Worst) return; // NaN is the worst
            (Worst, Where) = (difference, string.Create(CultureInfo.InvariantCulture, $"iteration {Values.Count}"));
        }
    }
}
