using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Optimizers;

/// <summary>A small model of random parameters with the optimizer over it, and settings that the tests vary.</summary>
internal sealed class OptimizerFixture : IDisposable
{
    public static readonly OptimizerOptions Adam = new()
    {
        Kind = OptimizerKind.Adam, WeightDecay = 0.1, ClipGrad = 1.0, AdamBeta1 = 0.9, AdamBeta2 = 0.95, AdamEps = 1e-8, SgdMomentum = 0.9,
        UseDistributedOptimizer = false,
    };

    // One tensor longer than an update chunk, odd sizes, and norms and biases (no decay) between the others.
    private static readonly (string Name, long[] Shape, bool Decays)[] DefaultParameters =
    [
        ("embedding", [301, 257], true), ("norm", [37], false), ("bias", [5], false), ("linear", [3, 7], true), ("last_norm", [64], false),
    ];

    public Parameter[] Parameters { get; }

    public FlatLayout Layout { get; }

    public GradientBuffer Gradients { get; }

    public MixedPrecisionOptimizer Optimizer { get; }

    public Random Random { get; }

    public OptimizerFixture(int seed, OptimizerOptions options, ScalarType dtype, LossScaler? scaler = null, ParallelState? parallel = null)
    {
        Random = new Random(seed);
        Parameters = [.. DefaultParameters.Select(entry => MakeParameter(entry.Name, entry.Shape, entry.Decays, dtype))];
        parallel ??= ParallelState.SingleRank();
        Layout = FlatLayout.Create(Parameters, parallel);
        Gradients = Layout.CreateGradientBuffer(CPU, 1);
        Optimizer = new MixedPrecisionOptimizer(Layout, Gradients, parallel, options, scaler);
    }

    /// <summary>Fills every main gradient with normal values times <paramref name="size"/> and returns them per parameter.</summary>
    public double[][] SetGradients(double size)
    {
        var result = new double[Parameters.Length][];
        for (var i = 0; i < Parameters.Length; i++)
        {
            result[i] = [.. Normal(Parameters[i].NumElements).Select(value => (double)(float)(value * size))];
            using var scope = NewDisposeScope();
            var source = tensor(result[i]).view(Parameters[i].Shape);
            Parameters[i].MainGrad.copy_(source);
        }
        return result;
    }

    /// <summary>The weights of one parameter as doubles.</summary>
    public static double[] Read(Tensor tensor)
    {
        using var wide = tensor.to_type(ScalarType.Float64);
        return wide.data<double>().ToArray();
    }

    public void Dispose()
    {
        Optimizer.Dispose();
        Gradients.Dispose();
        foreach (var parameter in Parameters) parameter.Dispose();
    }

    private Parameter MakeParameter(string name, long[] shape, bool decays, ScalarType dtype)
    {
        var count = shape.Aggregate(1L, (product, extent) => product * extent);
        using var scope = NewDisposeScope();
        var source = tensor([.. Normal(count).Select(value => (float)value)]).view(shape);
        var data = source.to_type(dtype, copy: true);
        return new Parameter(name, data, [TensorBlock.Whole(name, shape)], new ParameterTraits { Decays = decays });
    }

    private IEnumerable<double> Normal(long count)
    {
        for (var i = 0L; i < count; i++) yield return Math.Sqrt(-2 * Math.Log(1 - Random.NextDouble())) * Math.Cos(2 * Math.PI * Random.NextDouble());
    }
}
