using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>
/// Matrix products of one GPU through cuBLASLt, each by the algorithm that proved fastest: at the first use of a shape the library's proposals
/// are timed on the operands at hand, and the best one is kept for the process and on disk.
/// </summary>
/// <remarks>
/// Like the modules of <see cref="CudaKernels"/> this is state of a device, which ranks of a process may share. Nothing is locked while the GPU
/// works: a rank that waited for another one's measurement could hold up a collective that the other one waits for. Products run on libtorch's
/// current stream, one after another, and so can share a workspace.
/// </remarks>
internal sealed unsafe class GpuProducts
{
    private const int MaxCandidates = 16, WarmupRounds = 3, Rounds = 9;

    /// <summary>
    /// Part of the time of the library's first proposal that another one must stay below. At its power limit a GPU runs at the clock that the joules of a
    /// product allow, and what wins by less in a few turns does not win over a whole step (bench/LOG.md).
    /// </summary>
    private const float LeastGain = 0.97f;

    private const int WorkspaceBytes = 64 << 20;

    /// <summary>Below this a product takes microseconds, and neither a choice nor a workspace pays.</summary>
    private const double LargeProduct = 2e10;

    private static readonly ConcurrentDictionary<int, GpuProducts> devices = new();

    private readonly CublasLt lt = LibTorch.CudaAbi.Lt;
    private readonly ConcurrentDictionary<(ProductShape Shape, bool IsMeasured), ProductAlgorithm> chosen = new();
    private readonly Lazy<MeasuredProducts> measured;
    private readonly Lazy<nint> workspace = new(AllocateWorkspace);
    private readonly int device;
    private readonly nint handle;

    private GpuProducts(int device)
    {
        this.device = device;
        nint created;
        CublasLt.Check(lt.Create(&created), "cublasLtCreate");
        handle = created;
        measured = new Lazy<MeasuredProducts>(() => MeasuredProducts.Load(CudaKernels.DeviceName(device), lt.GetVersion()));
    }

    /// <summary>The products of a device, which is the calling thread's current one.</summary>
    public static GpuProducts Of(int device) => devices.GetOrAdd(device, index => new GpuProducts(index));

    /// <summary>True when the choice of an algorithm is worth its measurement.</summary>
    public static bool IsLarge(double floatingPointOperations) => floatingPointOperations >= LargeProduct;

    /// <summary>D = op(A) · op(B) (+ bias) (+ addend), or D += the product, on libtorch's current stream.</summary>
    /// <param name="accumulate">Adds to what D holds.</param>
    /// <param name="measure">Chooses by measuring; else the library's first proposal is taken, which is the same in every process.</param>
    /// <exception cref="InvalidOperationException">cuBLASLt has no algorithm for the shape, or refused it.</exception>
    public void Run(in ProductShape shape, in ProductAddresses at, bool accumulate, bool measure)
    {
        measure &= IsLarge(shape.FloatingPointOperations);
        using var plan = new Plan(lt, shape, at);
        if (!chosen.TryGetValue((shape, measure), out var algorithm))
            algorithm = chosen.GetOrAdd((shape, measure), measure ? ChooseByMeasuring(plan, shape, at, accumulate) : Propose(plan, shape, 1)[0].Algorithm);
        CublasLt.Check(Launch(plan, shape, at, accumulate, algorithm), $"cublasLtMatmul of {shape}");
    }

    private ProductAlgorithm ChooseByMeasuring(Plan plan, in ProductShape shape, in ProductAddresses at, bool accumulate)
    {
        var representative = shape.Representative();
        if (measured.Value.Find(representative) is { } known && IsUsable(plan, known)) return known;
        var candidates = Propose(plan, shape, MaxCandidates);
        if (candidates.Length == 1 || IsCapturing()) return candidates[0].Algorithm;
        var best = Fastest(plan, shape, at, accumulate, candidates);
        if (best is { } winner) measured.Value.Add(representative, winner);
        return best ?? candidates[0].Algorithm;
    }

    private bool IsUsable(Plan plan, ProductAlgorithm algorithm)
    {
        ProductCandidate result;
        return lt.AlgorithmCheck(handle, plan.Description, plan.A, plan.B, plan.D, plan.D, &algorithm, &result) == 0 && result.WorkspaceBytes <= WorkspaceBytes;
    }

    private ProductCandidate[] Propose(Plan plan, in ProductShape shape, int count)
    {
        var results = new ProductCandidate[count];
        var numResults = 0;
        nint preference;
        CublasLt.Check(lt.PreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
        try
        {
            var bytes = (ulong)(IsLarge(shape.FloatingPointOperations) ? WorkspaceBytes : 0);
            CublasLt.Check(lt.PreferenceSet(preference, CublasLt.MaxWorkspaceBytes, &bytes, sizeof(ulong)), "cublasLtMatmulPreferenceSetAttribute");
            var alignment = (uint)shape.Alignment;
            foreach (var attribute in (ReadOnlySpan<int>)[CublasLt.MinAlignmentA, CublasLt.MinAlignmentB, CublasLt.MinAlignmentC, CublasLt.MinAlignmentD])
                CublasLt.Check(lt.PreferenceSet(preference, attribute, &alignment, sizeof(uint)), "cublasLtMatmulPreferenceSetAttribute");
            int status;
            fixed (ProductCandidate* first = results)
                status = lt.GetHeuristic(handle, plan.Description, plan.A, plan.B, plan.D, plan.D, preference, count, first, &numResults);
            if (status != 0 || numResults == 0) throw new InvalidOperationException($"cuBLASLt has no algorithm for {shape} (status {status}).");
        }
        finally
        {
            lt.PreferenceDestroy(preference);
        }
        return [.. results.AsSpan(0, numResults)];
    }

    /// <summary>The fastest candidate, the library's first in case of doubt; null when there is no memory for results that must not reach the target.</summary>
    private ProductAlgorithm? Fastest(Plan plan, in ProductShape shape, in ProductAddresses at, bool accumulate, ProductCandidate[] candidates)
    {
        using var scope = NewDisposeScope();
        var target = at;
        if (accumulate)
        {
            try
            {
                target = at with { D = Dispatcher.DataPointer(empty([shape.N, shape.M], ScalarType.Float32, new Device(DeviceType.CUDA, device))) };
            }
            catch (ExternalException)
            {
                return null;
            }
        }
        var usable = new List<ProductCandidate>(candidates.Length);
        foreach (var candidate in candidates)
            if (Launch(plan, shape, target, accumulate: false, candidate.Algorithm) == 0) usable.Add(candidate); // also loads its kernel
        if (usable.Count == 0) return null;
        var times = Times(plan, shape, target, usable);
        var best = Array.IndexOf(times, times.Min());
        return usable[times[best] < LeastGain * times[0] ? best : 0].Algorithm;
    }

    /// <summary>Median milliseconds of each candidate. They take turns, so that all meet the same clock of the GPU, and the host waits only once.</summary>
    private float[] Times(Plan plan, in ProductShape shape, in ProductAddresses at, List<ProductCandidate> candidates)
    {
        using var clock = new Clock(device, (WarmupRounds + Rounds) * candidates.Count);
        for (var turn = 0; turn < clock.NumStretches; turn++)
        {
            clock.Mark();
            Launch(plan, shape, at, accumulate: false, candidates[turn % candidates.Count].Algorithm);
        }
        clock.Mark();
        clock.Wait();
        var medians = new float[candidates.Count];
        Span<float> ofOne = stackalloc float[Rounds];
        for (var c = 0; c < medians.Length; c++)
        {
            for (var round = 0; round < Rounds; round++) ofOne[round] = clock.Milliseconds((WarmupRounds + round) * candidates.Count + c);
            ofOne.Sort();
            medians[c] = ofOne[Rounds / 2];
        }
        return medians;
    }

    private int Launch(Plan plan, in ProductShape shape, in ProductAddresses at, bool accumulate, ProductAlgorithm algorithm)
    {
        var (alpha, beta) = (1f, accumulate || at.Addend != 0 ? 1f : 0f);
        var addend = at.Addend != 0 ? at.Addend : at.D;
        var hasWorkspace = IsLarge(shape.FloatingPointOperations);
        return lt.Matmul(
            handle, plan.Description, &alpha, at.A, plan.A, at.B, plan.B, &beta, addend, plan.D, at.D, plan.D, &algorithm,
            hasWorkspace ? workspace.Value : 0, hasWorkspace ? WorkspaceBytes : 0u, LibTorch.CudaAbi.CurrentStream(device));
    }

    private bool IsCapturing()
    {
        int status;
        return LibTorch.CudaAbi.StreamIsCapturing(LibTorch.CudaAbi.CurrentStream(device), &status) != 0 || status != 0;
    }

    /// <summary>Not from libtorch's allocator: it lives as long as the process.</summary>
    private static nint AllocateWorkspace()
    {
        nint address;
        if (LibTorch.CudaAbi.Malloc(&address, WorkspaceBytes) == 0) return address;
        LibTorch.CudaAbi.GetLastError();
        throw new InvalidOperationException("CUDA out of memory. Tried to allocate 64.00 MiB for the workspace of matrix products.");
    }

    /// <summary>cuBLASLt's description of one product.</summary>
    private readonly struct Plan : IDisposable
    {
        private readonly CublasLt lt;

        public nint Description { get; }
        public nint A { get; }
        public nint B { get; }
        public nint D { get; }

        public Plan(CublasLt lt, in ProductShape shape, in ProductAddresses at)
        {
            this.lt = lt;
            nint created;
            CublasLt.Check(lt.DescriptionCreate(&created, CublasLt.ComputeFp32, CublasLt.TypeFp32), "cublasLtMatmulDescCreate");
            Description = created;
            Set(CublasLt.TransposeA, shape.TransposeA ? 1 : 0);
            Set(CublasLt.TransposeB, shape.TransposeB ? 1 : 0);
            if (shape.HasBias)
            {
                Set(CublasLt.Epilogue, CublasLt.EpilogueBias);
                Set(CublasLt.BiasPointer, at.Bias);
            }
            if (at.ScaleA != 0) Set(CublasLt.ScaleA, at.ScaleA);
            if (at.ScaleB != 0) Set(CublasLt.ScaleB, at.ScaleB);
            if (shape.IsFastAccumulation) Set(CublasLt.FastAccumulation, (sbyte)1);
            A = Layout(shape.TypeA, shape.TransposeA ? shape.K : shape.M, shape.TransposeA ? shape.M : shape.K, shape.LeadingA);
            B = Layout(shape.TypeB, shape.TransposeB ? shape.N : shape.K, shape.TransposeB ? shape.K : shape.N, shape.LeadingB);
            D = Layout(shape.TypeD, shape.M, shape.N, shape.M);
        }

        public void Dispose()
        {
            lt.LayoutDestroy(A);
            lt.LayoutDestroy(B);
            lt.LayoutDestroy(D);
            lt.DescriptionDestroy(Description);
        }

        private void Set<T>(int attribute, T value) where T : unmanaged =>
            CublasLt.Check(lt.DescriptionSet(Description, attribute, &value, (nuint)sizeof(T)), "cublasLtMatmulDescSetAttribute");

        private nint Layout(int type, int rows, int columns, long leading)
        {
            nint layout;
            CublasLt.Check(lt.LayoutCreate(&layout, type, (ulong)rows, (ulong)columns, leading), "cublasLtMatrixLayoutCreate");
            return layout;
        }
    }

    /// <summary>Times consecutive stretches of the current stream.</summary>
    private sealed class Clock : IDisposable
    {
        private readonly CudaAbi cuda = LibTorch.CudaAbi;
        private readonly nint[] events;
        private readonly nint stream;
        private int numMarks;

        public int NumStretches => events.Length - 1;

        public Clock(int device, int numStretches)
        {
            stream = cuda.CurrentStream(device);
            events = new nint[numStretches + 1];
            for (var i = 0; i < events.Length; i++)
            {
                nint created;
                CublasLt.Check(cuda.EventCreateWithFlags(&created, 0), "cudaEventCreateWithFlags");
                events[i] = created;
            }
        }

        /// <summary>Between two stretches, before the first and after the last.</summary>
        public void Mark() => CublasLt.Check(cuda.EventRecord(events[numMarks++], stream), "cudaEventRecord");

        public void Wait() => CublasLt.Check(cuda.EventSynchronize(events[^1]), "cudaEventSynchronize");

        public float Milliseconds(int stretch)
        {
            float milliseconds;
            CublasLt.Check(cuda.EventElapsedTime(&milliseconds, events[stretch], events[stretch + 1]), "cudaEventElapsedTime");
            return milliseconds;
        }

        public void Dispose()
        {
            foreach (var @event in events) cuda.EventDestroy(@event);
        }
    }
}
