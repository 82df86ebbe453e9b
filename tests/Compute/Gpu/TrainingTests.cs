using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>Whole training steps on a GPU: memory, determinism, loss.</summary>
[Trait("Category", "gpu"), Collection<Alone>] // alone: memory is that of the whole GPU
public sealed class TrainingTests(ITestOutputHelper output)
{
    private const int Rows = 8, Length = 96;

    private static readonly ModelConfig Model = TestModels.Config with
    {
        HiddenSize = 256, FfnHiddenSize = 512, NumAttentionHeads = 4, NumQueryGroups = 2, KvChannels = 64, VocabSize = 1000, MaxPositionEmbeddings = 256, QkLayerNorm = true,
    };

    private static readonly ModelConfig Experts = Model with { Moe = new MoeConfig { NumExperts = 16, FfnHiddenSize = 128, TopK = 4, PreSoftmax = false } };

    [Fact]
    public void Train_500Steps_GpuMemoryDoesNotGrow()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        long afterWarmup = 0, atTheEnd = 0;
        Train(new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 4 }, 505, step =>
        {
            if (step == 5) afterWarmup = CudaDevices.UsedBytes();
            if (step == 505) atTheEnd = CudaDevices.UsedBytes();
        });
        output.WriteLine($"GPU memory after step 5: {afterWarmup >> 20} MiB, after step 505: {atTheEnd >> 20} MiB");
        Assert.True(atTheEnd - afterWarmup <= 0, $"grew by {atTheEnd - afterWarmup} bytes");
    }

    [Theory, InlineData("bfloat16"), InlineData("float32")]
    public void Train_DeterministicMode_50StepsTwice_SameBits(string dtype)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var config = new TrainingConfig { TorchDtype = dtype, MicroBatchSize = 2, DeterministicMode = true };
        var first = Train(config, 50, _ => { });
        var second = Train(config, 50, _ => { });
        Assert.Equal(first, second);
        Assert.True(first[^1] < first[0] - 0.5, $"the loss did not fall: {first[0]} to {first[^1]}");
    }

    [Fact]
    public void Train_Fp16WithLossScale_LossFalls()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var losses = Train(new TrainingConfig { TorchDtype = "float16", MicroBatchSize = 4, InitialLossScale = 65536 }, 60, _ => { });
        Assert.True(losses[^1] < losses[0] - 0.5, $"the loss did not fall: {losses[0]} to {losses[^1]}");
    }

    [Fact]
    public void Train_HalfOfTheOptimizerOnTheHost_SameLosses()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var config = new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 4, DdpBucketSize = 100_000, DeterministicMode = true };
        var onDevice = Train(config, 30, _ => { });
        var offloaded = Train(config with { OptimizerCpuOffload = true, OptimizerOffloadFraction = 0.5 }, 30, _ => { });
        for (var step = 0; step < onDevice.Length; step++) Assert.Equal(onDevice[step], offloaded[step], 1e-2 * onDevice[step]); // bf16 weights differ in a last bit
        Assert.True(offloaded[^1] < offloaded[0] - 0.5, $"the loss did not fall: {offloaded[0]} to {offloaded[^1]}");
    }

    /// <summary>Batches differ in their tokens and in their number of targets, which reaches the recorded kernels by a tensor.</summary>
    [Theory, InlineData(2), InlineData(8)]
    public void Train_CudaGraph_SameLossesAsWithout(int microBatchSize)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var config = new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = microBatchSize, DeterministicMode = true, CalculatePerTokenLoss = true };
        var plain = Train(config, 30, _ => { }, ignoresSomeTargets: true);
        var graphed = Train(config with { CudaGraph = true }, 30, _ => { }, ignoresSomeTargets: true);
        Assert.Equal(plain, graphed);
        Assert.True(plain[^1] < plain[0] - 0.5, $"the loss did not fall: {plain[0]} to {plain[^1]}");
    }

    [Fact]
    public void Train_ExpertsAsCudaGraph_SameLossesAsWithout()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var config = new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 4, DeterministicMode = true, MoeAuxLossCoeff = 0.01 };
        var plain = Train(config, 30, _ => { }, model: Experts);
        Assert.Equal(plain, Train(config with { CudaGraph = true }, 30, _ => { }, model: Experts));
        Assert.True(plain[^1] < plain[0] - 0.5, $"the loss did not fall: {plain[0]} to {plain[^1]}");
    }

    [Fact]
    public void Train_Experts_SameLossesAsOnTheCpu()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var config = new TrainingConfig { TorchDtype = "float32", MicroBatchSize = 4, MoeAuxLossCoeff = 0.01 };
        var onGpu = Train(config, 8, _ => { }, model: Experts);
        var onCpu = Train(config with { Device = "cpu" }, 8, _ => { }, model: Experts);
        for (var step = 0; step < onCpu.Length; step++) Assert.Equal(onCpu[step], onGpu[step], 1e-4 * onCpu[step]);
    }

    [Fact]
    public void Train_CudaGraphAndBatchOfAnotherShape_IsRefused()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        using var parallel = ParallelState.SingleRank();
        var config = new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 2, CudaGraph = true };
        using var model = new ModelChunks(Model, RunSettings.Model(config, Megatron.Testing.Gpu.Device), parallel, [StageLayout.Whole(Model)]);
        ModelInitializer.Initialize(model.Parameters, Model, seed: 3);
        using var trainer = new Trainer(model, parallel, Megatron.Testing.Gpu.Device, RunSettings.Trainer(config));
        trainer.TrainStep(Source(2, ignoresSomeTargets: false).Get(0), 1e-3);
        var fault = Assert.Throws<ConfigException>(() => trainer.TrainStep(Source(4, ignoresSomeTargets: false).Get(1), 1e-3));
        Assert.Contains("GRAPH001", fault.Message);
    }

    [Fact]
    public void Train_MemoryRunsOut_SaysWhatHoldsHowMuchAndWhatHelps()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var ballast = new List<TorchSharp.torch.Tensor>();
        try
        {
            var fault = Assert.Throws<ConfigException>(() => Train(new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 4 }, 1, step =>
            {
                if (step == 0) FillMemory(ballast);
            }));
            output.WriteLine(fault.Message);
            Assert.Contains("GPU004", fault.Message);
            Assert.Contains("saved activations", fault.Message);
            Assert.Contains("--use_distributed_optimizer", fault.Message);
        }
        finally
        {
            foreach (var tensor in ballast) tensor.Dispose();
            ReleaseCache();
        }
    }

    /// <summary>libtorch gives back what it keeps for later only when a request cannot be met; the tests after this one need memory outside it.</summary>
    private static void ReleaseCache() => Assert.ThrowsAny<Exception>(
        () => TorchSharp.torch.empty(1L << 42, TorchSharp.torch.ScalarType.Byte, Megatron.Testing.Gpu.Device));

    /// <summary>Takes all of the GPU, also what the allocator keeps of earlier tests.</summary>
    private static void FillMemory(List<TorchSharp.torch.Tensor> ballast)
    {
        for (var bytes = 8L << 30; bytes >= 1L << 20; bytes /= 2)
        {
            try
            {
                while (true) ballast.Add(TorchSharp.torch.empty(bytes, TorchSharp.torch.ScalarType.Byte, Megatron.Testing.Gpu.Device).DetachFromDisposeScope());
            }
            catch (System.Runtime.InteropServices.ExternalException)
            {
                // No more pieces of this size.
            }
        }
    }

    private static double[] Train(TrainingConfig config, int steps, Action<int> afterStep, bool ignoresSomeTargets = false, ModelConfig? model = null)
    {
        var (shape, device) = (model ?? Model, config.Device == "cpu" ? TorchSharp.torch.CPU : Megatron.Testing.Gpu.Device);
        using var parallel = ParallelState.SingleRank();
        using var chunks = new ModelChunks(shape, RunSettings.Model(config, device), parallel, [StageLayout.Whole(shape)]);
        ModelInitializer.Initialize(chunks.Parameters, shape, seed: 3);
        using var trainer = new Trainer(chunks, parallel, device, RunSettings.Trainer(config));
        trainer.Optimizer.CopyModelToMasters();
        var source = Source(config.MicroBatchSize, ignoresSomeTargets);
        var losses = new double[steps];
        afterStep(0);
        for (var step = 1; step <= steps; step++)
        {
            losses[step - 1] = trainer.TrainStep(source.Get(step - 1), 1e-3).Loss;
            afterStep(step);
        }
        return losses;
    }

    /// <summary>Rows that count upwards from a random start: learnable in a few steps.</summary>
    private static PlannedBatchSource Source(int microBatchSize, bool ignoresSomeTargets)
    {
        var random = new Random(5);
        var ids = new long[4 * Rows * Length];
        for (var row = 0; row < ids.Length / Length; row++)
        {
            var start = random.Next(Model.VocabSize);
            for (var i = 0; i < Length; i++) ids[row * Length + i] = (start + i) % Model.VocabSize;
        }
        var labels = ids.Select(id => ignoresSomeTargets && random.Next(3) == 0 ? MicroBatch.IgnoreIndex : id).ToArray();
        return ArrayBatchSource.Create(ids, labels, Rows, Length, BatchLayout.SingleRankUnpadded(microBatchSize));
    }
}
