using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Data.Streaming;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Native;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Tokenization;
using Megatron.Compute.Training.Snapshots;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// Everything one rank holds during an attempt: data, model, trainer, and where the run stands. Built from the configuration alone, so any
/// silo can start any rank.
/// </summary>
public sealed class RankSetup : IDisposable
{
    public required TrainingConfig Config { get; init; }
    public required ModelConfig ModelConfig { get; init; }
    public required ParallelState Parallel { get; init; }

    /// <summary>Where the rank's tensors live.</summary>
    public required Device Device { get; init; }

    public required ITokenizer Tokenizer { get; init; }
    public required TrainData Data { get; init; }
    public required IGlobalBatchSource TrainSource { get; init; }

    /// <summary>The stream behind <see cref="TrainSource"/>; null for planned data.</summary>
    internal StreamBatchSource? Stream { get; init; }

    public required IGlobalBatchSource? ValidationSource { get; init; }
    public required ModelChunks Model { get; init; }
    public required Trainer Trainer { get; init; }
    public required LearningRateSchedule Schedule { get; init; }
    public required CheckpointSaver Saver { get; init; }

    /// <summary>Null when none are taken.</summary>
    internal SnapshotTaker? Snapshots { get; init; }

    /// <summary>Where the run stands; advanced by the loop.</summary>
    public required RunProgress Progress { get; set; }

    /// <summary>Builds data, model and optimizer and loads the newest state. Runs on the rank's thread.</summary>
    /// <param name="groups">Gets the process groups as soon as they can be aborted or freed.</param>
    /// <param name="cancellation">Ends the preparation of data.</param>
    /// <exception cref="ConfigException">Something the user gave cannot be used.</exception>
    public static RankSetup Build(StartRank start, RankEnvironment environment, RankLink link, GroupSink groups, CancellationToken cancellation)
    {
        var config = TrainingConfig.FromJson(start.ConfigJson);
        // With logical shards the bits must not depend on the number of replicas (DESIGN D12), so neither may the number of threads.
        var libTorch = environment.PrepareThread(
            start.NumThreads, config.LogicalDataShards * config.TensorModelParallelSize * config.PipelineModelParallelSize * config.ContextParallelSize);
        var device = CudaDevices.Choose(config.Device, start.LocalRank, libTorch);
        var folder = ModelFolder.Find(config);
        var modelConfig = ModelConfigOverrides.Apply(HfConfigReader.ReadFolder(folder).Model, config);
        var tokenizer = HfTokenizer.Load(config.Tokenizer ?? folder);
        var data = DatasetBuilder.Build(
            config, tokenizer, ChatTemplates.Get(config.Template ?? "default"), modelConfig.VocabSize, line => TellOnce(link, line), cancellation);
        try
        {
            var dims = RunSettings.Dims(config, start.WorldSize);
            environment.PrepareDevice(device, config, line => link.Notice(line, RankNoticeLevel.Warning));
            var backend = environment.ProcessGroups(start, device);
            groups.Backend(backend);
            var parallel = ParallelState.Create(dims, start.Rank, backend, config.SequenceParallel);
            groups.Opened(parallel);
            var peers = OpenPeers(start, environment, groups, backend, device);
            return Build(start, environment, link, new RankInputs(config, folder, modelConfig, tokenizer, data, parallel, device, peers));
        }
        catch
        {
            data.Dispose();
            throw;
        }
    }

    /// <summary>Frees the model and the trainer; the process groups belong to the caller of <see cref="Build(StartRank, RankEnvironment, RankLink, GroupSink, CancellationToken)"/>.</summary>
    public void Dispose()
    {
        StopReading();
        Saver.Dispose();
        Snapshots?.Dispose();
        Trainer.Dispose();
        Model.Dispose();
        Data.Dispose();
    }

    /// <summary>Ends the reading of training data; lines about rows that a stream left out.</summary>
    public IReadOnlyList<string> StopReading()
    {
        (TrainSource as IDisposable)?.Dispose();
        return Stream is null ? [] : [.. Stream.Report];
    }

    // Whichever rank of a node prepares the data tells it; of those that find them prepared, the first rank alone.
    private static void TellOnce(RankLink link, string line)
    {
        if (link.Rank == 0 || line.EndsWith("prepared", StringComparison.Ordinal)) link.Notice(line);
    }

    private static PeerLinks OpenPeers(StartRank start, RankEnvironment environment, GroupSink groups, IProcessGroupFactory backend, Device device)
    {
        var peers = PeerLinks.Open(start.SnapshotPartners, start.Rank, () =>
        {
            var factory = environment.SnapshotGroups(start, device, backend);
            if (factory != backend) groups.Backend(factory);
            return factory;
        });
        groups.Kept(peers);
        return peers;
    }

    private static RankSetup Build(StartRank start, RankEnvironment environment, RankLink link, RankInputs inputs)
    {
        var (config, folder, modelConfig, tokenizer, data, parallel, device, peers) = inputs;
        var layout = RunSettings.BatchLayout(config, parallel, tokenizer);
        var work = WorkOf(start, config, modelConfig, folder, parallel.PipelineParallel.Rank);
        var model = new ModelChunks(modelConfig, RunSettings.Model(config, device), parallel, work.Chunks);
        var trainer = new Trainer(model, parallel, device, RunSettings.Trainer(config) with { Schedule = work.Schedule });
        var restored = ModelState.Load(new ModelStateRequest(config, modelConfig, folder, start.LoadFolder, environment.Time, parallel, device), model, trainer, link);
        var progress = restored.Progress;
        restored.RequireSameData(data.PlanHash, config);
        var source = data.CreateTrainSource(layout, progress.Iteration, progress.StreamCursor);
        return new RankSetup
        {
            Config = config,
            ModelConfig = modelConfig,
            Parallel = parallel,
            Device = device,
            Tokenizer = tokenizer,
            Data = data,
            TrainSource = config.NumWorkers == 0 || progress.Iteration >= data.LastIteration
                ? source
                : new PrefetchingSource(source, config.Streaming ? 1 : config.NumWorkers, progress.Iteration, data.LastIteration, Staging(config, parallel, device)),
            Stream = source as StreamBatchSource,
            ValidationSource = data.CreateValidationSource(layout),
            Model = model,
            Trainer = trainer,
            Schedule = RunSettings.LearningRate(config, data.TrainIters),
            Saver = new CheckpointSaver(start, config, environment.Time, folder, link, environment.Fence),
            Snapshots = config.PeerSnapshotInterval == 0 ? null : new SnapshotTaker(
                new CheckpointContent(start, folder), new PeerSnapshots(environment.Snapshots, parallel.World, peers, device), peers.Partner, config.PeerSnapshotInterval),
            Progress = progress,
        };
    }

    /// <summary>The layers and the schedule that the rank's stage handed to it.</summary>
    /// <exception cref="ConfigException">JOB005: by the model folder that this node sees, the stage has other layers.</exception>
    internal static StageWork WorkOf(StartRank start, TrainingConfig config, ModelConfig model, string folder, int stage)
    {
        var work = start.Work ?? throw new InvalidOperationException($"Rank {start.Rank} was started without layers.");
        var here = work with { Chunks = RunSettings.Partition(config, model).LayoutsOf(stage) };
        return here == work ? work : throw new ConfigException("JOB005",
            $"Rank {start.Rank} was given the layers {work.Layers}, but by the model in {folder} on its node pipeline stage {stage} has the layers {here.Layers}; give all nodes the same model folder.");
    }

    // A recorded step reads its rows from where they were when it was recorded.
    private static Func<GlobalBatch, GlobalBatch>? Staging(TrainingConfig config, ParallelState parallel, Device device)
    {
        if (device.type != TorchSharp.DeviceType.CUDA || config.CudaGraph) return null;
        var split = new ContextSplit(parallel.ContextParallel.Rank, parallel.ContextParallel.Size);
        return batch => StagedMicroBatch.Pin(batch, split);
    }

    /// <summary>What is known before the model is built.</summary>
    private sealed record RankInputs(
        TrainingConfig Config, string Folder, ModelConfig ModelConfig, ITokenizer Tokenizer, TrainData Data, ParallelState Parallel, Device Device, PeerLinks Peers);
}

/// <summary>Where a rank's process groups become known to whoever aborts and frees them.</summary>
/// <param name="Backend">Called before the groups are opened: opening may wait for ranks that never come.</param>
/// <param name="Opened">Called when they are open; the callee frees them.</param>
/// <param name="Kept">Called with groups beside these, which the callee frees with them; an abort of their backend reaches them.</param>
public sealed record GroupSink(Action<IProcessGroupFactory> Backend, Action<ParallelState> Opened, Action<IDisposable> Kept);
