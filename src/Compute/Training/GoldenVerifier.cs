using System.Globalization;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Native;
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
/// weights, greedy continuation, and for models with experts a trajectory with the balance loss. Micro-batches are not padded.
/// </summary>
public sealed class GoldenVerifier : IDisposable
{
    private readonly TrainingConfig config;
    private readonly ModelConfig modelConfig;
    private readonly GoldenFile golden;
    private readonly GptModel model;
    private readonly Trainer trainer;
    private readonly ParallelState parallel;
    private readonly Device device;
    private readonly List<GoldenCheck> checks = [];
    private readonly SortedDictionary<string, Tensor> dump = new(StringComparer.Ordinal);

    /// <param name="config">Golden folder, layout, micro-batch size, dtype, recompute; hyperparameters come from the folder.</param>
    /// <param name="worldSize">Ranks asked for; one today.</param>
    /// <param name="libTorch">Where libtorch is looked for.</param>
    /// <exception cref="ConfigException">The folder cannot be used.</exception>
    public GoldenVerifier(TrainingConfig config, int worldSize, LibTorchOptions libTorch)
    {
        golden = GoldenFile.Open(config.Golden ?? throw new ConfigException("GOLD002", "verify compares with a golden folder; give --golden DIR."));
        config = OptionCatalog.With(config with { TorchDtype = config.TorchDtype ?? "float32" }, golden.Hyperparameters
            .Where(pair => OptionCatalog.Find(pair.Key, trainingVerb: true) is not null)
            .ToDictionary(pair => pair.Key, pair => Convert(pair.Key, pair.Value)));
        config = config with { MoeRouterLoadBalancingType = "aux_loss", MoeAuxLossCoeff = 0, MoeZLossCoeff = null };
        this.config = config;
        modelConfig = ModelConfigOverrides.Apply(HfConfigReader.ReadFolder(golden.Folder).Model, config);
        ConfigValidator.ThrowIfInvalid(config with { Model = golden.Folder, GlobalBatchSize = 8 }, modelConfig, worldSize);
        device = CudaDevices.Choose(config.Device, localRank: 0, LibTorch.Load(libTorch));
        parallel = ParallelState.SingleRank();
        model = LoadModel(config);
        trainer = new Trainer(model, parallel, device, RunSettings.Trainer(config));
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
        parallel.Dispose();
        golden.Dispose();
    }

    private void CompareForward()
    {
        using var scope = NewDisposeScope();
        var batch = FirstBatch();
        using var context = new ForwardContext(batch.MicroBatches[0], device, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0);
        var expected = golden.Read("logits");
        var logits = model.ForwardLogits(null, new Saved(context)).to_type(float32).cpu().view(expected.shape);
        Keep("logits", logits);
        Add("logits", (logits - expected).abs().max().item<float>() / expected.abs().max().item<float>(), 2e-4, "max |Δ| / max |logits|", "");

        var (lossSum, tokenCount) = trainer.Evaluate(batch);
        Keep("loss", tensor((float)(lossSum / tokenCount)));
        Add("loss", Relative(lossSum / tokenCount, golden.Read("loss").item<float>()), 1e-5, "relative", "");
    }

    private void CompareGradients()
    {
        using var scope = NewDisposeScope();
        trainer.AccumulateGradients(FirstBatch());
        var gradients = AllTensors(parameter => parameter.MainGrad);
        CompareTensors("grad.", gradients, 1e-4, "gradients");
    }

    private void CompareTrajectory(Trainer trainer, int microBatchSize, IReadOnlyList<GoldenStep> expected, string name)
    {
        var (ids, shape) = golden.ReadIds("steps.input_ids");
        var (labels, _) = golden.ReadIds("steps.labels");
        var source = ArrayBatchSource.Create(ids, labels, (int)shape[1], (int)shape[2], BatchLayout.SingleRankUnpadded(microBatchSize));
        var schedule = RunSettings.LearningRate(config with { GlobalBatchSize = (int)shape[1] }, expected.Count);
        var (loss, norm, balance) = (new Series(), new Series(), new Series());
        for (var step = 0; step < expected.Count; step++)
        {
            var metrics = trainer.TrainStep(source.Get(step), schedule.At(step + 1));
            loss.Add(metrics.Loss, expected[step].LmLoss);
            norm.Add(metrics.Optimizer.GradNorm, expected[step].GradNorm);
            if (expected[step].LoadBalancingLoss is { } sum) balance.Add((metrics.LoadBalancingLoss ?? double.NaN) * NumMoeLayers, sum);
        }
        var label = name.Replace('_', ' ');
        AddSeries(name, "lm_loss", loss, 1e-4, $"{label} loss");
        AddSeries(name, "grad_norm", norm, 1e-3, $"{label} grad norm");
        if (balance.Values.Count > 0) AddSeries(name, "load_balancing_loss", balance, 1e-4, $"{label}: load balancing loss");
    }

    // The coefficient weighs a loss over the tokens of one micro-batch, so this run takes the global batch as one.
    private void CompareTrajectoryWithAuxLoss()
    {
        if (golden.TrajectoryWithAuxLoss is not { } expected) return;
        var withLoss = config with { MoeAuxLossCoeff = golden.AuxLossCoeff };
        using var freshModel = LoadModel(withLoss);
        using var freshTrainer = new Trainer(freshModel, parallel, device, RunSettings.Trainer(withLoss));
        CompareTrajectory(freshTrainer, (int)golden.ReadIds("steps.input_ids").Shape[1], expected, "trajectory_with_aux_loss");
    }

    private int NumMoeLayers => Enumerable.Range(0, modelConfig.NumLayers).Count(modelConfig.IsMoeLayer);

    private GptModel LoadModel(TrainingConfig settings)
    {
        var loaded = new GptModel(modelConfig, RunSettings.Model(settings, device), parallel, StageLayout.Whole(modelConfig));
        ModelState.LoadWeights(loaded, golden.Folder, allowRandom: false, settings.Seed);
        return loaded;
    }

    private void CompareFinalWeights()
    {
        using var scope = NewDisposeScope();
        CompareTensors("final.", AllTensors(parameter => parameter.Data), 1e-3, "final weights");
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
        var row = new MicroBatch
        {
            TokenIds = ids,
            Labels = [.. Enumerable.Repeat((long)MicroBatch.IgnoreIndex, ids.Length)],
            Positions = [.. Enumerable.Range(0, ids.Length)],
            CuSeqLens = [0, ids.Length],
            GlobalTokenIndex = [.. Enumerable.Range(0, ids.Length)],
            NumTargetTokens = 0,
        };
        using var context = new ForwardContext(row, device, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0);
        return model.ForwardLogits(null, new Saved(context))[-1].argmax().item<long>();
    }

    private GlobalBatch FirstBatch()
    {
        var (ids, shape) = golden.ReadIds("input_ids");
        var (labels, _) = golden.ReadIds("labels");
        var rows = (int)shape[0];
        return ArrayBatchSource.Create(ids, labels, rows, (int)shape[1], BatchLayout.SingleRankUnpadded(rows)).Get(0);
    }

    /// <summary>Compares all tensors of the golden file under a prefix by relative L2 norm.</summary>
    private void CompareTensors(string prefix, Dictionary<string, Tensor> computed, double tolerance, string name)
    {
        var worst = (Difference: 0.0, Where: "");
        foreach (var tensorName in golden.Names(prefix))
        {
            var expected = golden.Read(prefix + tensorName);
            if (!computed.TryGetValue(tensorName, out var actual)) throw new ConfigException("GOLD001", $"{golden.Folder}: {prefix}{tensorName} is no tensor of the model.");
            Keep(prefix + tensorName, actual);
            var difference = (actual - expected).norm().item<float>() / Math.Max(expected.norm().item<float>(), 1e-30);
            if (!(difference <= worst.Difference)) worst = (difference, tensorName);
        }
        Add(name, worst.Difference, tolerance, "relative L2", worst.Where);
    }

    /// <summary>A view of every parameter as fp32 Hugging Face tensors.</summary>
    private Dictionary<string, Tensor> AllTensors(Func<Parameter, Tensor> select)
    {
        var result = new Dictionary<string, Tensor>(StringComparer.Ordinal);
        foreach (var parameter in model.Parameters)
        {
            var flat = select(parameter).reshape(-1).to_type(float32).cpu();
            foreach (var block in parameter.Blocks) result.Add(block.Name, flat.narrow(0, block.FlatOffset, block.NumElements).view(block.Shape));
        }
        return result;
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
