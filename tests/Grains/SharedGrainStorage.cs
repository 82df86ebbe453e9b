using System.Collections.Concurrent;
using System.Globalization;
using Orleans.Storage;

namespace Megatron.Grains.Tests;

/// <summary>Grain state that outlives silos, with the version check of a real store. States are immutable records, so they are kept as they are.</summary>
internal sealed class SharedGrainStorage : IGrainStorage
{
    private readonly ConcurrentDictionary<(string Name, GrainId Grain), (object State, int Version)> states = new();

    public Task ReadStateAsync<T>(string stateName, GrainId grainId, IGrainState<T> grainState)
    {
        if (states.TryGetValue((stateName, grainId), out var stored))
            (grainState.State, grainState.ETag, grainState.RecordExists) = ((T)stored.State, Tag(stored.Version), true);
        return Task.CompletedTask;
    }

    public Task WriteStateAsync<T>(string stateName, GrainId grainId, IGrainState<T> grainState)
    {
        object state = grainState.State ?? throw new InvalidOperationException("there is no state to write");
        var (_, version) = states.AddOrUpdate((stateName, grainId), _ => (state, 1), (_, stored) => grainState.ETag == Tag(stored.Version)
            ? (state, stored.Version + 1)
            : throw new InconsistentStateException($"{stateName} of {grainId} was written by another activation", Tag(stored.Version), grainState.ETag ?? ""));
        (grainState.ETag, grainState.RecordExists) = (Tag(version), true);
        return Task.CompletedTask;
    }

    public Task ClearStateAsync<T>(string stateName, GrainId grainId, IGrainState<T> grainState)
    {
        states.TryRemove((stateName, grainId), out _);
        (grainState.ETag, grainState.RecordExists) = (null!, false); // no tag: there is nothing
        return Task.CompletedTask;
    }

    private static string Tag(int version) => version.ToString(CultureInfo.InvariantCulture);
}
