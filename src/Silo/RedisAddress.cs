using System.Globalization;
using Megatron.Compute.Configuration;
using StackExchange.Redis;

namespace Megatron.Silo;

/// <summary>
/// Where a cluster is found: a Redis and the name of the cluster in it, written <c>redis://[user:password@]host[:port][/name]</c>.
/// </summary>
public sealed record RedisAddress
{
    /// <summary>Name of a cluster when the address gives none.</summary>
    public const string DefaultClusterName = "megatron";

    private const string Scheme = "redis";
    private const int DefaultPort = 6379;
    private static readonly TimeSpan connectTimeout = TimeSpan.FromSeconds(3);

    /// <summary>Host name or address.</summary>
    public required string Host { get; init; }

    /// <summary>TCP port.</summary>
    public required int Port { get; init; }

    /// <summary>User of the access list; null for the default user.</summary>
    public string? User { get; init; }

    /// <summary>Password; never printed.</summary>
    public string? Password { get; init; }

    /// <summary>Silos and consoles with the same name belong together; several clusters may share a Redis.</summary>
    public string ClusterName { get; init; } = DefaultClusterName;

    /// <summary>Reads an address as the user writes it.</summary>
    /// <exception cref="ConfigException">CTRL005: it is no such address.</exception>
    public static RedisAddress Parse(string text)
    {
        if (!Uri.TryCreate(text, UriKind.Absolute, out var uri) || uri.Scheme != Scheme || uri.Host.Length == 0 || uri.Query.Length + uri.Fragment.Length > 0)
            throw Malformed(text);
        string name = Uri.UnescapeDataString(uri.AbsolutePath.Trim('/'));
        if (name.Any(letter => !char.IsAsciiLetterOrDigit(letter) && letter is not ('-' or '_' or '.')))
            throw Malformed(text);
        string[] login = uri.UserInfo.Split(':', 2);
        return new RedisAddress
        {
            Host = uri.Host.Trim('[', ']'),
            Port = uri.Port < 0 ? DefaultPort : uri.Port,
            User = login.Length == 2 && login[0].Length > 0 ? Uri.UnescapeDataString(login[0]) : null,
            Password = login.Length == 2 ? Uri.UnescapeDataString(login[1]) : null,
            ClusterName = name.Length > 0 ? name : DefaultClusterName,
        };
    }

    /// <summary>How the Redis client connects. A lost connection is made again, for as long as it takes.</summary>
    public ConfigurationOptions ToConfiguration()
    {
        var options = new ConfigurationOptions
        {
            User = User,
            Password = Password,
            AbortOnConnectFail = false,
            ConnectTimeout = (int)connectTimeout.TotalMilliseconds,
            AsyncTimeout = (int)connectTimeout.TotalMilliseconds,
            SyncTimeout = (int)connectTimeout.TotalMilliseconds,
            ReconnectRetryPolicy = new LinearRetry((int)TimeSpan.FromMilliseconds(500).TotalMilliseconds),
            KeepAlive = 1,
            ClientName = "megatron",
        };
        options.EndPoints.Add(Host, Port);
        return options;
    }

    /// <summary>The address without the password.</summary>
    public override string ToString()
    {
        string host = Host.Contains(':', StringComparison.Ordinal) ? $"[{Host}]" : Host;
        string name = ClusterName == DefaultClusterName ? "" : "/" + ClusterName;
        return string.Create(CultureInfo.InvariantCulture, $"{Scheme}://{host}:{Port}{name}");
    }

    private static ConfigException Malformed(string text)
    {
        int at = text.IndexOf('@', StringComparison.Ordinal);
        string shown = at < 0 ? text : "…" + text[at..]; // what stands before may be a password
        return new ConfigException("CTRL005", $"--cluster = {shown} is no cluster address; give redis://[user:password@]host[:port][/name].");
    }
}
